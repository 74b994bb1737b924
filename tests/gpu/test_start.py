"""A smoke run on GPUs starts CUDA in fresh processes only, and refuses a machine that lacks something before any of them.

The stubs' devices cannot be used, so such a run ends at its first computation: what it did until then is what counts here.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..smoke.conftest import ROOT, Ended, Starter
from .conftest import Inside

# In a process that forks as the supervisor does on CPUs: the control.
FORKED = """
import os, torch
torch.cuda.device_count()
if os.fork() == 0:
    print(torch._C._cuda_isInBadFork(), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    """Yield a starter of smoke runs."""
    made = Starter(ROOT, tmp_path)
    yield made
    made.close()


def start(starter: Starter, inside: Inside, devices: Path, *options: str, **given: object) -> tuple[Ended, set[int]]:
    """Run a smoke test on GPUs; its end, and the processes that started CUDA, the smoke test itself as 0."""
    log = devices.parent / "starts"
    environ = inside.environ(SMOKEHOUSE_DEV=devices, SMOKEHOUSE_PROC=devices, starts=log, **given)
    smoke = starter.start("--zero", "2", *options, sabotage=(), report=None, **environ)
    ended = smoke.finish()
    started = {int(line) for line in log.read_text().split()} if log.exists() else set()
    return ended, {0 if pid == smoke.process.pid else pid for pid in started}


@pytest.mark.parametrize(
    ("given", "gpus"),
    [({"gpus": 1}, 1), ({"gpus": 8}, 8), ({"gpus": 2, "nvml_error": 9}, 2), ({"mig": 1, "CUDA_VISIBLE_DEVICES": "MIG-01"}, 1)],
    ids=["one", "eight", "without NVML", "MIG"],
)
def test_cuda_starts_in_fresh_processes_only(
    starter: Starter, inside: Inside, devices: Path, given: dict[str, object], gpus: int
) -> None:
    ended, started = start(starter, inside, devices, "--device", "cuda", **given)
    assert ended.code == 1
    assert ended.report["device"] == "cuda"
    assert ended.report["world_size"] == gpus
    # It reached the GPU in a process that may use one, and there the stub ends it.
    plain = [check["verdict"] for check in ended.report["checks"] if check["name"] == "plain run"]  # once for each leg
    assert {*plain} == {"failed"}
    log = (ended.folder / "logs" / "plain" / "rank0.log").read_text()
    assert "CUDA error: operation not supported" in log
    assert "forked subprocess" not in log
    assert started
    assert 0 not in started


def test_one_rank_runs_on_a_gpu_that_no_other_may_share(starter: Starter, inside: Inside, devices: Path) -> None:
    ended, _ = start(starter, inside, devices, "--only", "plain run", compute_mode=3)
    assert [leg["name"] for leg in ended.report["legs"]] == ["nccl x1"]
    assert "GPU 0 (Stub GPU): compute mode is exclusive, so ranks cannot share it: one rank alone runs" in ended.stdout


def test_without_nvml_a_forked_process_could_not_use_cuda(inside: Inside) -> None:
    """The control: counting GPUs without NVML starts CUDA, which does not survive a fork."""
    assert inside.run("-c", FORKED, PYTORCH_NVML_BASED_CUDA_CHECK=1).stdout.strip() == "False"
    assert inside.run("-c", FORKED, PYTORCH_NVML_BASED_CUDA_CHECK=1, nvml_error=9).stdout.strip() == "True"


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (
            {"capability": "12.0", "driver": "580.65.06"},
            (),
            "GPU 0 (Stub GPU): torch 2.6.0+cu124 has kernels for sm_50, sm_60, sm_70, sm_75, sm_80, sm_86, sm_90, none of "
            "which runs on sm_120; use an environment whose torch has them, such as qwen2.5-vl-latest, or give --device cpu",
        ),
        ({"cuda": 11040, "driver": "470.82"}, (), "NVIDIA driver: torch 2.6.0+cu124 with CUDA 12.4 needs 525.60.13 or later"),
        ({"gpus": 8, "mig": 1}, ("--nproc", "2"), "a program sees one slice of a GPU in MIG mode"),
        (
            {"compute_mode": 3},
            ("--backend", "gloo"),
            "GPU 0 (Stub GPU): compute mode is exclusive, so ranks cannot share it; have an administrator run",
        ),
        ({"gpus": 8, "cuda_error": 802}, ("--device", "cuda"), "NVIDIA driver: CUDA does not start: the system is not yet"),
        ({"gpus": 0}, ("--device", "cuda"), "GPUs: driver 550.54.14, but no GPU is visible"),
        ({"nvml": False, "libcuda": False}, ("--device", "cuda"), "NVIDIA driver: not found, so only the CPU works"),
    ],
    ids=["kernels", "driver", "MIG", "exclusive", "no fabric manager", "no GPU", "no driver"],
)
def test_a_machine_that_lacks_something_is_refused_in_one_line(
    starter: Starter, inside: Inside, devices: Path, given: dict[str, object], options: tuple[str, ...], said: str
) -> None:
    ended, started = start(starter, inside, devices, *options, **given)
    assert ended.code == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert said in ended.stderr
    assert "give --device cpu" in ended.stderr
    assert not (ended.folder / "report.json").exists()
    assert 0 not in started


def test_an_environment_that_brings_no_answer_for_nvcc_is_refused(
    starter: Starter, inside: Inside, devices: Path, tmp_path: Path
) -> None:
    """As one that Smokehouse did not install; CUDA_HOME is set after the .pth file of this one has run."""
    code = f"""
import os, sys
os.environ["CUDA_HOME"] = "/nowhere"
from smoke_tests.__main__ import main
sys.exit(main({starter.arguments(tmp_path / "report")!r}))
"""
    line = inside.run("-c", code, code=2, SMOKEHOUSE_DEV=devices).stderr
    assert line.count("\n") == 1
    assert line.startswith("CUDA_HOME: /nowhere/bin/nvcc does not answer; DeepSpeed 0.15.4 runs it when it is imported")
    assert not (tmp_path / "report" / "report.json").exists()


def test_interfaces_of_a_cluster_do_not_reach_a_run_on_one_machine(inside: Inside) -> None:
    code = """
import json, os
from smoke_tests import preflight
preflight.prepare_process(offline=True)
print(json.dumps({name: os.environ[name] for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")}))
"""
    said = inside.run("-c", code, NCCL_SOCKET_IFNAME="ib0", GLOO_SOCKET_IFNAME="eth7").stdout
    # Above it is a word of the stub libraries' LD_PRELOAD, which is kept.
    assert json.loads(said.splitlines()[-1]) == {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("OSError('libcudnn.so.9: cannot open shared object file: No such file or directory')", "install the package for this"),
        (
            "ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')",
            "install the package for",
        ),
        ("ImportError('no such thing')", "reinstall torch"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_no_question_of_permissions(
    starter: Starter, tmp_path: Path, raised: str, said: str
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text(f"raise {raised}\n")
    line = starter.refused(PYTHONPATH=str(tmp_path / "path"))
    assert "torch cannot be imported" in line
    assert said in line
    assert ("permissions and free space play no part" in line) == ("shared object" in raised)
