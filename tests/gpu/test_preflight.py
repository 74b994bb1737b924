"""The preflight finds each thing that would end a run on GPUs, before one starts; stub libraries stand for the driver."""

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.machine import gpus, host, nvml

from ..smoke.conftest import ROOT
from .conftest import Inside

LIMIT = 10.0  # seconds that the preflight may take, here of CPU: a busy machine tells nothing of its duration
# What a machine for tests may be short of.
OF_THIS_MACHINE = ("limit of memlock", "clock", "control group", "HF_HOME", "NCCL interface")
MIG = "a program sees one slice of a GPU in MIG mode, so NCCL runs one rank"


def found(inside: Inside, devices: Path, *options: str, **given: object) -> list[dict[str, Any]]:
    """Return what the preflight finds besides what is fine; the exit code has to follow from it."""
    command = ["-m", "smoke_tests", "preflight", "--json", "--remedies", "host", *options]
    environ = inside.environ(SMOKEHOUSE_DEV=devices, SMOKEHOUSE_PROC=devices, **given)
    ended = subprocess.run([str(inside.python), *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240)
    assert ended.stderr == ""
    listed: list[dict[str, Any]] = json.loads(ended.stdout)
    assert ended.returncode == int(any(finding["level"] == "fail" for finding in listed))
    return [finding for finding in listed if finding["level"] != "ok" and finding["where"] not in OF_THIS_MACHINE]


def test_a_good_machine_is_fine_and_quickly_so(inside: Inside, devices: Path) -> None:
    assert inside.python.is_file()  # installed, if it was not, before time counts
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found(inside, devices, gpus=8) == []
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT


# Variables of the stubs and of the process -> level, place and words of what has to be found.
CASES: dict[str, tuple[dict[str, object], str, str, str, str]] = {
    # A card that the wheel has no kernels for.
    "blackwell": (
        {"capability": "12.0", "driver": "580.65.06"},
        "fail",
        "GPU 0 (Stub GPU)",
        "none of which runs on sm_120",
        "qwen2.5-vl-latest",
    ),
    "blackwell driver": (
        {"capability": "10.0", "driver": "565.57"},
        "fail",
        "NVIDIA driver",
        "does not support GPUs of the Blackwell",
        "570",
    ),
    "old driver": (
        {"cuda": 11040, "driver": "470.82"},
        "fail",
        "NVIDIA driver",
        "needs 525.60.13 or later, found 470.82",
        "update it",
    ),
    # Where torch would start CUDA to count GPUs.
    "nvml fails": ({"nvml_error": 9}, "warn", "NVML", "Driver Not Loaded; 1 GPUs found by CUDA itself", "utility"),
    "mig": ({"mig": 1}, "warn", "GPU 0 (Stub GPU)", MIG, "--nproc 1"),
    "mig by uuid": ({"mig": 1, "CUDA_VISIBLE_DEVICES": "MIG-0123"}, "warn", "GPU 0 (Stub GPU)", MIG, "--nproc 1"),
    "small slice": (
        {"mig": 1, "slice_mib": 1500},
        "fail",
        "GPU 0 (Stub GPU)",
        "1500 MiB of 1500 MiB free",
        "use a larger slice",
    ),
    # NVML counts eight cards, and none of them can be used.
    "no fabric manager": (
        {"gpus": 8, "cuda_error": 802},
        "warn",
        "NVIDIA driver",
        "CUDA does not start: the system is not yet initialised (error 802)",
        "nvidia-fabricmanager",
    ),
    "stub of a toolkit": (
        {"cuda": 0, "cuda_error": 34},
        "warn",
        "NVIDIA driver",
        "the stub of a CUDA toolkit",
        "LD_LIBRARY_PATH",
    ),
    "other driver": ({"cuda_error": 803}, "warn", "NVIDIA driver", "of different drivers (error 803)", "reboot"),
    # Both are said, each of its own.
    "old driver that does not start": (
        {"cuda": 11040, "driver": "470.82", "cuda_error": 804},
        "fail",
        "NVIDIA driver",
        "torch 2.6.0+cu124 with CUDA 12.4 needs 525.60.13 or later",
        "update it",
    ),
    "listed twice": (
        {"gpus": 2, "CUDA_VISIBLE_DEVICES": "1,1"},
        "warn",
        "GPUs",
        "no GPU is visible with CUDA_VISIBLE_DEVICES='1,1'",
        "check nvidia-smi",
    ),
    # CUDA counts the fastest first: 0 is the card that NVML calls 1.
    "mixed cards": (
        {"gpus": 2, "capability": "8.0,12.0", "driver": "580.65.06", "CUDA_VISIBLE_DEVICES": "0"},
        "fail",
        "GPU 1 (Stub GPU)",
        "none of which runs on sm_120",
        "qwen2.5-vl-latest",
    ),
    "no such GPU": (
        {"gpus": 2, "CUDA_VISIBLE_DEVICES": "7,0"},
        "warn",
        "GPUs",
        "no GPU is visible with CUDA_VISIBLE_DEVICES='7,0'",
        "check nvidia-smi",
    ),
    "prohibited": ({"compute_mode": 2}, "fail", "GPU 0 (Stub GPU)", "compute mode is prohibited", "nvidia-smi -i 0 -c DEFAULT"),
    "exclusive": (
        {"compute_mode": 3, "processes": 1},
        "fail",
        "GPU 0 (Stub GPU)",
        "compute mode is exclusive and 1 processes use it",
        "end them",
    ),
    "busy": ({"processes": 2}, "warn", "GPU 0 (Stub GPU)", "in use by 2 processes", "CUDA_VISIBLE_DEVICES"),
    "full": ({"used_mib": 81000}, "fail", "GPU 0 (Stub GPU)", "559 MiB of 81559 MiB free", "CUDA_VISIBLE_DEVICES"),
    "no nvcc": (
        {"CUDA_HOME": "/nowhere"},
        "fail",
        "CUDA_HOME",
        "/nowhere/bin/nvcc does not answer; DeepSpeed 0.15.4",
        "0.19.8 or later",
    ),
    "no gcc": (
        {"PATH": "/nowhere"},
        "fail",
        "C compiler",
        "not found, and triton 3.2.0 compiles C while DeepSpeed",
        "install gcc",
    ),
    "all is well": ({}, "", "", "", ""),
}
# Each case in one process, which imports torch once: the stubs read their variables whenever they are asked.
EACH = """
import dataclasses, json, os, sys
from smoke_tests import machine
found = []
for environ in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(environ)
    found.append([dataclasses.asdict(one) for one in machine.findings(machine.Situation(container=False))])
    for name in environ:
        os.environ.pop(name)
    os.environ.update(before)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def each_case(inside: Inside, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return what is found in each case."""
    devices = tmp_path_factory.mktemp("dev")
    (devices / "nvidiactl").touch()
    changes = []
    for given, *_ in CASES.values():
        environ = inside.environ(SMOKEHOUSE_DEV=devices, **given)
        changes.append({name: value for name, value in environ.items() if not name.startswith("LD_")})
    said = inside.run("-c", EACH, json.dumps(changes), SMOKEHOUSE_DEV=devices).stdout
    return dict(zip(CASES, json.loads(said), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_found_and_nothing_else(each_case: dict[str, list[dict[str, Any]]], case: str) -> None:
    _, level, where, what, fix = CASES[case]
    listed = [one for one in each_case[case] if one["level"] != "ok" and one["where"] not in OF_THIS_MACHINE]
    if case == "all is well":
        assert listed == []
        return
    [one] = [one for one in listed if one["where"] == where and what in one["what"]]
    # This environment has no kernels for that card either.
    several = ("blackwell driver", "small slice", "old driver that does not start")
    assert len(listed) == (2 if case in several else 1), listed
    assert one["level"] == level
    assert fix in one["fix"]


def test_nvml_that_is_missing(inside: Inside, devices: Path) -> None:
    [one] = found(inside, devices, nvml=False)
    assert (one["level"], one["what"]) == ("warn", "libnvidia-ml.so.1 not found; 1 GPUs found by CUDA itself")


def test_the_environment_of_today_needs_less(latest: Inside, devices: Path) -> None:
    """Its torch has kernels for Blackwell, and its DeepSpeed asks for no nvcc."""
    given: dict[str, object] = {"capability": "12.0", "driver": "580.65.06", "cuda": 13000, "CUDA_HOME": "/nowhere"}
    assert [one for one in found(latest, devices, **given) if one["level"] == "fail"] == []


def test_the_environments_that_are_named_have_the_kernels(inside: Inside, latest: Inside) -> None:
    assert (inside.name, latest.name) == (gpus.OLDEST, gpus.NEWEST)
    listed = inside.run("-c", "from smoke_tests.machine import software; print(*software.compiled_kernels())").stdout.split()
    assert all(gpus.kernels_for(capability, listed) for capability in ((5, 2), (6, 0), (6, 1)))
    compiled = latest.run("-c", "from smoke_tests.machine import software; print(*software.compiled_kernels())").stdout.split()
    for capability in ((7, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
        assert gpus.kernels_for(capability, compiled)
    # None of a GPU before Volta, for which an older environment is named.
    assert not gpus.kernels_for((6, 1), compiled)
    [one] = gpus.check_kernels([gpus.Gpu((6, 1)), gpus.Gpu((6, 1))], compiled, "2.10", (12, 8))
    assert (one.level, one.fix) == ("fail", f"use an environment whose torch has them, such as {gpus.OLDEST}")


def test_a_driver_that_is_not_brought_into_the_container(inside: Inside, devices: Path) -> None:
    version = devices / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)\n")
    for options, level in (((), "warn"), (("--device", "cuda"), "fail")):
        [one, *_] = found(inside, devices, "--remedies", "container", *options, nvml=False, libcuda=False)
        assert (one["level"], one["where"], one["fix"]) == (level, "NVIDIA driver", "start with --gpus all")
        assert one["what"].startswith("version 580.65.06 is on this machine, but libcuda.so.1 is not found here")
    (devices / "nvidiactl").rename(devices / "dxg")
    version.unlink()
    [one, *_] = found(inside, devices, nvml=False, libcuda=False)
    assert "Windows has a GPU" in one["what"]
    assert "/usr/lib/wsl/lib" in one["fix"]


def test_nvml_without_cuda_sees_no_gpu(inside: Inside, devices: Path) -> None:
    """As in a container that was started with NVIDIA_DRIVER_CAPABILITIES=utility: what NVML counts, no program can use."""
    code = "from smoke_tests import machine; print(len(machine.visible_gpus().gpus))"
    for libcuda, count in ((True, "2"), (False, "0")):
        environ = inside.environ(gpus=2, libcuda=libcuda)
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
        assert ended.stdout.strip() == count
    for options, level in (((), "warn"), (("--device", "cuda"), "fail")):
        [one, *_] = found(inside, devices, "--remedies", "container", *options, gpus=2, libcuda=False)
        assert (one["level"], one["where"]) == (level, "NVIDIA driver")
        assert one["fix"] == "start with NVIDIA_DRIVER_CAPABILITIES=compute,utility"


def test_the_first_gpu_of_a_kind_is_named() -> None:
    cards = [nvml.Card(number, f"GPU-{number}", "Stub GPU", (10, 0), 0, 0, False, 0, 0) for number in range(2)]
    [one] = gpus.check_kernels([gpus.Gpu((10, 0), card) for card in cards], ["sm_90"], "2.6", (12, 4))
    assert one.where == "GPU 0 (Stub GPU)"


def test_a_device_that_is_missing_or_forbidden(inside: Inside, devices: Path) -> None:
    (devices / "nvidiactl").unlink()
    assert ("fail", str(devices / "nvidiactl"), "not found, so CUDA does not start") in {
        (one["level"], one["where"], one["what"]) for one in found(inside, devices)
    }


def test_own_adam_that_training_would_compile(inside: Inside) -> None:
    """A remedy in every virtual environment, and no warning: only some configurations use the op."""
    code = "from smoke_tests.machine import software; print(*software.own_adam(software.installed()))"
    said = inside.run("-c", code).stdout
    assert said.startswith(
        "fused_adam: not compiled; DeepSpeed 0.15.4 does it with nvcc when training with AdamW of its own starts; "
    )
    assert '"torch_adam": true' in said


BUILT = """
import dataclasses, json, sys
from smoke_tests.machine import software
from smoke_tests.machine.software import Software

found = []
for torch, cuda, hip, gpus, required in json.loads(sys.argv[1]):
    listed = software.built_for(Software(torch, cuda, None, None, hip), gpus, required=required)
    found.append([f"{one.level}: {one.what}" for one in listed])
print(json.dumps(found))
"""


def test_torch_that_is_built_for_something_else(inside: Inside) -> None:
    cases = [
        ("2.11.0+cu130", [13, 0], None, 8, True),
        ("2.11.0+cpu", None, None, 0, False),
        ("2.11.0+cpu", None, None, 8, False),
        ("2.11.0+cpu", None, None, 8, True),
        ("2.11.0+rocm6.4", None, "6.4", 0, True),
    ]
    assert json.loads(inside.run("-c", BUILT, json.dumps(cases)).stdout) == [
        [],
        [],
        ["warn: torch 2.11.0+cpu is built without CUDA, so that it uses none of 8 GPUs"],
        ["fail: torch 2.11.0+cpu is built without CUDA, so that it uses none of 8 GPUs"],
        ["fail: torch 2.11.0+rocm6.4 is built for ROCm 6.4, and not for CUDA"],
    ]


WITHOUT_CUDA = """
import importlib.util, sys, torch
from pathlib import Path
from types import SimpleNamespace

folder = Path(sys.argv.pop(1))
(folder / "version.py").write_text("__version__ = '2.6.0+cpu'\\ncuda: Optional[str] = None\\nhip: Optional[str] = None\\n")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: (
    SimpleNamespace(origin=folder / "__init__.py") if name == "torch" else find(name, *more)
)
torch.version.cuda = None
from smoke_tests import runtime
from smoke_tests.options import InputError, read
from smoke_tests.preflight import check_machine
options = read(sys.argv[1:])
try:
    check_machine(options, runtime.choose_device(options.device, 8))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("options", [("--device", "cuda"), ()], ids=["refused", "warned of"])
def test_a_run_with_torch_for_cpus_on_a_machine_with_gpus(
    inside: Inside, devices: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    arguments = ["--here", "--report", str(tmp_path / "report"), *options]
    script = ("-c", WITHOUT_CUDA, str(tmp_path))
    said = inside.run(*script, *arguments, gpus=8, SMOKEHOUSE_DEV=devices, SMOKEHOUSE_PROC=devices).stdout
    what = "torch: torch 2.6.0+cpu is built without CUDA, so that it uses none of 8 GPUs; install a build of torch for CUDA"
    assert said == (f"{what}, or give --device cpu\n" if options else f"smoke: warning: {what}\n")


def test_python_h_that_is_missing(inside: Inside, devices: Path, tmp_path: Path) -> None:
    """As on a host without python3-dev; a compiler that fails stands for libraries that are missing."""
    code = """
import sysconfig
sysconfig.get_path = lambda name: "/nowhere"
from smoke_tests.machine import software
print(*software.c_compiler(software.installed(), gpu=True, container=False))
"""
    said = inside.run("-c", code).stdout
    assert said.startswith("/nowhere/Python.h: not found, and triton 3.2.0 compiles C while DeepSpeed 0.15.4 is imported")
    [one] = found(inside, devices, TRITON_LIBCUDA_PATH=tmp_path)
    assert one["level"] == "fail"
    assert "cannot find -lcuda" in one["what"]
    assert "libcuda.so" in one["fix"]


def test_fewer_gpus_than_promised_and_one_that_needs_a_reset(inside: Inside, devices: Path) -> None:
    missing, reset = found(inside, devices, "--gpus", "8", gpus=7, recovery=1)[:2]
    assert (missing["level"], missing["what"]) == ("fail", "8 were promised (--gpus), 7 are visible")
    assert (reset["where"], reset["what"].partition(",")[0]) == ("GPU 0 (Stub GPU)", "the driver requires a reset of the GPU")


def test_device_code_is_read_as_torch_says_it(inside: Inside) -> None:
    """Of torch's own library, whose architectures torch has as text."""
    code = """
import sys
from pathlib import Path
import torch
from smoke_tests.machine import fatbin, software
kernels = {name for name in software.compiled_kernels() if name.startswith("sm_")}
print(kernels - {*fatbin.architectures(Path(torch.__file__).with_name("lib") / "libtorch_cuda.so")})
"""
    assert inside.run("-c", code).stdout == "set()\n"


def test_products_and_their_rate(inside: Inside) -> None:
    """On a CPU: 2 * 256**3 operations a product."""
    code = """
import torch
from smoke_tests.machine import measure
rate = measure.tflops(torch.device("cpu"), 256)
print(0 < rate < 100, callable(torch.cuda.nccl.all_reduce))
"""
    assert inside.run("-c", code).stdout == "True True\n"


def test_mig_runs_one_rank(inside: Inside, devices: Path) -> None:
    [one] = found(inside, devices, "--nproc", "2", gpus=8, mig=1)
    assert (one["level"], one["what"]) == ("fail", MIG)


@pytest.mark.parametrize(
    ("capability", "compiled", "kind"),
    [
        ((9, 0), ["sm_80", "sm_90"], "binary"),
        ((8, 6), ["sm_80"], "binary"),
        ((8, 9), ["sm_80", "sm_86"], "binary"),
        ((8, 0), ["sm_86"], ""),
        ((10, 0), ["sm_90"], ""),
        ((10, 0), ["sm_90", "compute_90"], "ptx"),
        ((10, 0), ["sm_90a"], ""),
        ((9, 0), ["sm_90a"], "binary"),
        ((10, 3), ["sm_100a"], ""),
        ((10, 3), ["sm_100f"], "binary"),
        ((12, 1), ["sm_120"], "binary"),
        ((12, 0), ["compute_100f"], ""),
        ((7, 0), ["compute_80"], ""),
        ((9, 0), [], ""),
    ],
)
def test_what_runs_on_a_gpu(capability: tuple[int, int], compiled: list[str], kind: str) -> None:
    assert gpus.kernels_for(capability, compiled) == kind


def test_ptx_needs_a_driver_of_its_release(inside: Inside) -> None:
    code = """
from smoke_tests.machine import gpus
for cuda in ((12, 4), (12, 8)):
    [one] = gpus.check_kernels([gpus.Gpu((10, 0))], ["sm_90", "compute_90"], "2.7", cuda)
    print(one.level)
"""
    assert inside.run("-c", code).stdout.split() == ["ok", "fail"]


@pytest.mark.parametrize(
    ("variable", "count"),
    [(None, 4), ("", 0), ("2", 1), ("2,0", 2), ("0,9,1", 1), ("1,1", 0), ("-1", 0), ("GPU-00000001", 1), ("GPU-0", 0)],
)
def test_gpus_are_those_that_the_program_sees(inside: Inside, variable: str | None, count: int) -> None:
    code = "from smoke_tests import machine; print(len(machine.visible_gpus().gpus))"
    chosen = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    environ = inside.environ(gpus=4) | chosen
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == str(count)


# of every machine


def mounted(folder: Path, options: str) -> Path:
    """Mount a small file system, which a namespace of its own or root may."""
    folder.mkdir()
    ended = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, timeout=10)
    if ended.returncode:
        pytest.skip("mounting a small file system requires root")
    return folder


@pytest.mark.parametrize(
    ("options", "ranks", "training", "level", "what"),
    [
        ("size=64m", 8, False, "fail", "64 MiB free, 8 ranks of NCCL need 128 MiB"),  # Docker's default
        ("size=64m", 2, False, "warn", "64 MiB, NCCL and data loaders need 1024 MiB"),
        ("size=64m", None, True, "fail", "64 MiB, NCCL and data loaders need 1024 MiB"),
        ("size=2g", 8, True, "ok", "2048 MiB, 2048 MiB free"),
        ("size=2g,ro", 8, False, "fail", "not writable, so neither NCCL nor Python's locks work"),
    ],
)
def test_shared_memory(tmp_path: Path, options: str, ranks: int | None, training: bool, level: str, what: str) -> None:
    folder = mounted(tmp_path / "shm", options)
    try:
        one = host.shared_memory(ranks, container=True, training=training, folder=str(folder))
        assert (one.level, one.what, one.where) == (level, what, str(folder))
        assert "--shm-size 2g" in one.fix or "MiB" not in one.what or level == "ok"
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


def test_shared_memory_that_others_fill(tmp_path: Path) -> None:
    folder = mounted(tmp_path / "shm", "size=1100m")
    try:
        with (folder / "left").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 100 << 20)
        one = host.shared_memory(2, container=True, training=True, folder=str(folder))
        assert (one.level, one.fix) == ("warn", "delete what ended processes left there")
        assert one.what.startswith("1000 MiB of 1100 MiB free, ")
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


def limited(which: str, soft: int) -> list[dict[str, Any]]:
    """Return the findings of a process with a limit."""
    code = f"import resource, sys; resource.setrlimit(resource.{which}, ({soft}, resource.getrlimit(resource.{which})[1])); "
    code += "from smoke_tests.machine import command; sys.exit(command.main(['--json', '--device', 'cpu']))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    listed: list[dict[str, Any]] = json.loads(ended.stdout)
    return listed


@pytest.mark.parametrize(
    ("which", "soft", "where", "level"),
    [
        ("RLIMIT_NOFILE", 64, "limit of open files", "fail"),
        ("RLIMIT_NOFILE", 1024, "limit of open files", "warn"),
        ("RLIMIT_FSIZE", 1 << 20, "limit of file size", "fail"),
        ("RLIMIT_FSIZE", 1 << 30, "limit of file size", "warn"),
        ("RLIMIT_STACK", 1 << 20, "limit of stack", "warn"),
    ],
)
def test_limits(which: str, soft: int, where: str, level: str) -> None:
    [one] = [one for one in limited(which, soft) if one["where"] == where]
    assert one["level"] == level
    assert one["what"].startswith(str(soft))
    assert "ulimit" in one["fix"]


def test_loopback_that_is_down() -> None:
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=10).returncode:
        pytest.skip("a network namespace requires root")
    command = ["unshare", "--net", sys.executable, "-m", "smoke_tests.machine", "--json", "--device", "cpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    [one] = [one for one in json.loads(ended.stdout) if one["where"] == "127.0.0.1"]
    assert (ended.returncode, one["level"]) == (1, "fail")


@pytest.mark.parametrize("option", ["--cuda=x", "--nproc=0", "--nonsense"])
def test_wrong_options_are_refused_in_one_line(option: str) -> None:
    command = [sys.executable, "-m", "smoke_tests", "preflight", option]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_the_machine_package_needs_nothing_but_python() -> None:
    """The doctor of an image without torch runs it, and that of a laptop."""
    names = set()
    for file in (ROOT / "smoke_tests" / "machine").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(
                    str(node.module) if str(node.module).startswith("smoke_tests") else str(node.module).partition(".")[0]
                )
    foreign = {name for name in names - sys.stdlib_module_names if not name.startswith("smoke_tests.machine")}
    assert foreign == {"torch"}  # in `compiled_kernels` alone
