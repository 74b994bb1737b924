"""DeepSpeed's ops, compiled ahead of time by a real toolkit while the image of qwen2.5-vl is built."""

import importlib.util
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ..builder.channel import copy
from . import toolkit
from .conftest import STRANGER
from .engine import Engine
from .real import NAME, furnish, run
from .test_real import Real

FUSED = "deepspeed/ops/adam/fused_adam_op.cpython-311-x86_64-linux-gnu.so"
CPU = "deepspeed/ops/adam/cpu_adam_op.cpython-311-x86_64-linux-gnu.so"
SITE = "/opt/env/lib/python3.11/site-packages"

# Where no GPU is, deepspeed takes its ops for CUDA only where it is told to, and triton has no driver to look at.
LOADED = f"""
import os, sys, torch
sys.modules["triton"] = None
os.environ["DS_ACCELERATOR"] = "cuda"
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
assert [name for name, there in installed_ops.items() if there] == ["fused_adam", "cpu_adam"], installed_ops
assert FusedAdamBuilder().load().__file__ == "{SITE}/{FUSED}"
assert FusedAdamBuilder().load().multi_tensor_adam
assert CPUAdamBuilder().load().__file__ == "{SITE}/{CPU}"
torch.manual_seed(0)
start = torch.randn(10007)
ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
options = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
optimizers = DeepSpeedCPUAdam([ours], **options), torch.optim.AdamW([theirs], **options)
for _ in range(3):
    ours.grad = torch.randn(10007)
    theirs.grad = ours.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
assert not torch.allclose(ours, start, atol=1e-3)
"""


@pytest.fixture(scope="module")
def aot(
    root: Path, engine: Engine, mmdebstrap: str, packages: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    """The image. Its layers below DeepSpeed's are those of test_real, for whom their cache stays."""
    place = tmp_path_factory.mktemp("aot")
    channel = copy(packages, place / "channel")
    toolkit.fill(channel, programs)
    environ = {name: engine.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in engine.environ}
    house = furnish(place / "house", root, channel.folder, f"{mmdebstrap}:{engine.environ['PATH']}", environ)
    built = json.loads(run(house, "build", NAME, "--json").stdout)
    assert built["labels"]["io.smokehouse.ops"] == "aot"  # since there is a toolkit
    yield Real(house, built["place"], built["digest"])
    engine.docker("rmi", "--force", *engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", NAME).stdout.split())


def test_ops_are_there_for_whoever_has_no_compiler(aot: Real, engine: Engine) -> None:
    """And compute what torch computes."""
    engine.docker("run", "--rm", *STRANGER, aot.name, "python", "-c", LOADED)
    # Debian's gcc is there for triton, which is C: no op can be made of that.
    compilers = "for name in nvcc g++ c++ cuobjdump x86_64-conda-linux-gnu-gcc; do command -v $name; done"
    assert engine.docker("run", "--rm", *STRANGER, aot.name, "sh", "-c", compilers, check=False).stdout == ""
    said = engine.docker("run", "--rm", *STRANGER, aot.name).stdout
    assert "DeepSpeed's fused_adam and cpu_adam are compiled, for sm_80, sm_90 and x86-64-v3" in said


def test_the_op_for_gpus_is_for_those_that_the_image_names(aot: Real, engine: Engine, programs: Path, tmp_path: Path) -> None:
    made = engine.docker("create", aot.name).stdout.strip()
    engine.docker("cp", f"{made}:{SITE}/{FUSED}", str(tmp_path / "fused.so"))
    engine.docker("rm", made)
    command = [toolkit.unpacked(programs) / "bin" / "cuobjdump", "--list-elf", tmp_path / "fused.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert set(re.findall(r"\.(sm_\d+)\.cubin", listed)) == {"sm_80", "sm_90"}
    # No trace of the process that compiled it, by which two builds would differ.
    assert b"tmpxft_" not in (tmp_path / "fused.so").read_bytes()


def test_such_an_image_is_verified_but_for_its_libraries(aot: Real) -> None:
    verdict = json.loads(run(aot.house, "verify", f"docker:{aot.name}", "--json").stdout)
    assert verdict["passed"]
    assert {f"{SITE[1:]}/{library}" for library in (FUSED, CPU)} <= {*verdict["uncompared"]}
    assert not [path for path in verdict["uncompared"] if path.endswith("/builder.py")]


@pytest.fixture
def step(root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The step that builds, with the real cuobjdump and no other part of the toolkit."""
    spec = importlib.util.spec_from_file_location("build", root / "docker" / "steps" / "build.py")
    assert spec
    assert spec.loader
    step = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "bin").symlink_to(toolkit.unpacked(programs) / "bin")
    monkeypatch.setattr(step.tree, "PREFIX", str(tmp_path / "env").removeprefix("/"))
    return step


def wheel(folder: Path, programs: Path, *architectures: str, ops: tuple[str, ...] = (FUSED, CPU)) -> Path:
    """A wheel with `ops`, of which each has an empty kernel for `architectures`."""
    tools = toolkit.unpacked(programs) / "bin"
    images = []
    for architecture in architectures:
        kernel = f".version 8.4\n.target {architecture}\n.address_size 64\n.visible .entry kernel() {{ ret; }}\n"
        (folder / "kernel.ptx").write_text(kernel)
        cubin = folder / f"{architecture}.cubin"
        command = [tools / "ptxas", f"-arch={architecture}", folder / "kernel.ptx", "-o", cubin]
        subprocess.run(command, check=True, timeout=60)
        images.append(f"--image3=kind=elf,sm={architecture.removeprefix('sm_')},file={cubin}")
    subprocess.run([tools / "fatbinary", "-64", f"--create={folder / 'op.so'}", *images], check=True, timeout=60)
    made = folder / "deepspeed-0.15.4-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for op in ops:
            archive.write(folder / "op.so", op)
    return made


def test_a_wheel_whose_op_lacks_a_gpu_is_refused(step: ModuleType, programs: Path, tmp_path: Path) -> None:
    said = "g++ -march=x86-64-v3 -D__AVX256__ cpu_adam.cpp"
    step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90"), said)
    for there, lacking in (("sm_80", "sm_90"), ("sm_90", "sm_80")):
        with pytest.raises(SystemExit, match=f"fused_adam is not for {lacking}: ELF file 1: .*{there}.cubin"):
            step._check_ops(wheel(tmp_path, programs, there), said)


@pytest.mark.parametrize(("there", "lacking"), [(FUSED, "cpu_adam"), (CPU, "fused_adam")])
def test_a_wheel_without_an_op_is_refused(step: ModuleType, programs: Path, tmp_path: Path, there: str, lacking: str) -> None:
    with pytest.raises(SystemExit, match=f"{lacking} was not built; look at the toolkit"):
        step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90", ops=(there,)), "g++ -march=x86-64-v3")


def test_a_toolkit_that_cannot_say_for_which_gpus_an_op_is_is_refused(step: ModuleType, programs: Path, tmp_path: Path) -> None:
    step.tree.PREFIX = str(tmp_path).removeprefix("/")
    with pytest.raises(SystemExit, match="add cuda-cuobjdump to \\[conda\\] devel"):
        step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90"), "g++ -march=x86-64-v3")
