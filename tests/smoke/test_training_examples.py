"""Run the training examples of docs/how-to/mixed-batches.md as they are: two ranks, ZeRO-3, rows with and without images."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv
from smokehouse.locks import check

NAME = "vlm-r1"
DEADLINE = 600.0  # seconds; a run takes 40 on an idle machine

# Rows of which one has an image: on whichever rank it is, the other has text only.
PREPARE = """
import json, sys
from pathlib import Path
from smoke_tests import families
from smoke_tests.fixtures import samples, tiny_checkpoint
folder, scene = Path(sys.argv[1]), samples.scenes(4)
tiny_checkpoint.write(folder / "checkpoint", families.get("qwen2_5_vl"), samples.corpus(), width=256)
scene[1].draw().save(folder / "picture.png")
picture = str(folder / "picture.png")
rows = [{"image": None, "question": samples.QUESTION, "answer": one.caption} for one in scene]
rows[1]["image"] = picture
(folder / "rows.json").write_text(json.dumps(rows))
"""

# On a GPU the example is started by torchrun alone. On a CPU DeepSpeed would compile a communication op, and ask NCCL.
ON_CPU = """
import runpy, sys
from smoke_tests import runtime
runtime.choose_accelerator("cpu")
runtime.import_deepspeed("cpu")
del sys.modules["triton"]
import deepspeed, torch
from smokehouse_loader import zero
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
sys.argv = sys.argv[1:]
with zero.safe_gathers():
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def python(root: Path) -> Path:
    """Return the Python of the environment, which has TRL."""
    return virtualenv.ensure(Checkout(root), check.load(Checkout(root), NAME))


@pytest.fixture(scope="module")
def folder(root: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, a picture and rows."""
    found = tmp_path_factory.mktemp("examples")
    (found / "on_cpu.py").write_text(ON_CPU)
    run(root, python, "-c", PREPARE, str(found))
    return found


def run(root: Path, python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment's Python; it must succeed."""
    foreign = ("PYTHON", "VIRTUAL_ENV", "RANK", "WORLD_SIZE", "MASTER_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environ |= {"PYTHONPATH": f"{root}:{root / 'src'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace", timeout=DEADLINE)
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    return ended


@pytest.mark.parametrize("example", ["train_trl.py", "train_trainer.py"])
def test_example(root: Path, python: Path, folder: Path, example: str) -> None:
    output = folder / example.removesuffix(".py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(folder / "on_cpu.py")]
    script = str(root / "docs/examples" / example)
    ended = run(root, python, *launch, script, str(folder / "checkpoint"), str(folder / "rows.json"), str(output))
    losses = [line for line in ended.stdout.splitlines() if "'loss':" in line]
    assert len(losses) == 2, ended.stdout[-2000:]  # four rows on two ranks
    checked = run(root, python, "-m", "smokehouse_loader", "check", str(output), "--json")
    assert json.loads(checked.stdout)["ok"]


@pytest.mark.parametrize("example", ["train_trl.py", "train_trainer.py"])
def test_page_has_the_example(root: Path, example: str) -> None:
    page = (root / "docs/how-to/mixed-batches.md").read_text()
    code = (root / "docs/examples" / example).read_text()
    assert "".join(f"    {line}".rstrip() + "\n" for line in code.splitlines()) in page
