"""Ops compiled with an installation: a small DeepSpeed whose builders compile real extensions with this machine's gcc."""

import base64
import hashlib
import io
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.installs import ops

from ..channel import Channel
from ..conftest import Index, TestCheckout
from .test_prefix import run

OPS = ["cpu_adam", "fused_adam"]
SITE = Path("lib", "python3.11", "site-packages")
SOURCE = r"""
#include <Python.h>
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, NAME, 0, -1, 0};
PyMODINIT_FUNC INIT(void) { return PyModule_Create(&def); }
"""
# What DeepSpeed's builders and torch's BuildExtension do, as far as the installation sees it.
BUILDERS = """
class Extension:
    def __init__(self, op):
        self.op, self.source, self.flags = op, "csrc/adam/op.c", [OpBuilder().cpu_arch(), OpBuilder().simd_width()]


class OpBuilder:
    def cpu_arch(self):
        return "-march=native"

    def simd_width(self):
        return "-D__AVX512__"

    def __init__(self, op=""):
        self.op = op

    def builder(self):
        return Extension(self.op)
"""
BUILD = """
import os, pathlib, subprocess, sysconfig

class BuildExtension:
    def __init__(self, distribution):
        self.modules = distribution.attributes["ext_modules"]

    def ensure_finalized(self):
        assert self.build_temp

    def run(self):
        folder = pathlib.Path(self.build_lib, "deepspeed", "ops", "adam")
        folder.mkdir(parents=True)
        for one in self.modules:
            print("compiling", one.op, *one.flags, os.environ["DS_ACCELERATOR"], os.environ.get("CUDA_HOME"))
            name = one.op + "_op"
            target = folder / (name + sysconfig.get_config_var("EXT_SUFFIX"))
            defines = [f'-DNAME="{name}"', f"-DINIT=PyInit_{name}"]
            include = "-I" + sysconfig.get_paths()["include"]
            home = os.environ.get("CUDA_HOME")
            libraries = [f"-L{home}/lib64", "-Wl,--as-needed", "-lcudart"] if home and one.op == "fused_adam" else []
            subprocess.run([os.environ["CC"], "-shared", "-fPIC", *one.flags, *defines, include, "-o", target, one.source,
                            *libraries], check=True)
"""
INSTALLED = """\
version='0.15.4'
installed_ops={'cpu_adam': False, 'fused_adam': False, 'async_io': False}
accelerator_name=''
torch_info={'version': '0.0', 'bf16_support': False, 'cuda_version': '0.0'}
"""
LOAD = """
import importlib, json
from deepspeed import git_version_info_installed as info

ops = [op for op, there in info.installed_ops.items() if there]
found = {op: importlib.import_module(f"deepspeed.ops.adam.{op}_op").__name__ for op in ops}
print(json.dumps([found, info.accelerator_name, info.torch_info]))
"""


def package(name: str, version: str, members: dict[str, str]) -> bytes:
    """Return the bytes of a wheel with these files."""
    info = f"{name}-{version}.dist-info"
    members |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
    members[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in members.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return buffer.getvalue()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An installation whose path has a space."""
    return tmp_path / "my disk" / "tiny"


@pytest.fixture
def command(target: Path) -> list[str]:
    """The command that installs PyPI packages into `target` and compiles the ops."""
    return ["install", "tiny", str(target), "--only", "pip", "--ops", "aot"]


@pytest.fixture
def cpu(checkout: TestCheckout, index: Index) -> TestCheckout:
    """A checkout whose lock has a DeepSpeed, and a torch without CUDA."""
    add_packages(index, cuda="None")
    checkout.edit(checkout.environment, "      - beta\n", "      - deepspeed\n      - torch\n      - setuptools\n")
    checkout.lock()
    return checkout


@pytest.fixture
def gpu(checkout: TestCheckout, index: Index) -> TestCheckout:
    """A checkout whose lock has a DeepSpeed, and a torch with CUDA 12.4."""
    add_packages(index, cuda="'12.4'")
    index.put("nvidia_cuda_runtime_cu12-12.4-py3-none-any.whl", package("nvidia_cuda_runtime_cu12", "12.4", {}))
    added = ("deepspeed", "torch", "setuptools", "nvidia-cuda-runtime-cu12")
    checkout.edit(checkout.environment, "      - beta\n", "".join(f"      - {name}\n" for name in added))
    checkout.lock()
    return checkout


def add_packages(index: Index, cuda: str) -> None:
    """List DeepSpeed, torch and setuptools, as small as they can be."""
    all_ops = "from .builder import OpBuilder\nALL_OPS = {op: OpBuilder(op) for op in ('cpu_adam', 'fused_adam', 'async_io')}\n"
    empty = ("deepspeed", "deepspeed/ops", "deepspeed/ops/adam", "deepspeed/ops/op_builder")
    members = {f"{folder}/__init__.py": "" for folder in empty}
    members |= {"deepspeed/ops/op_builder/builder.py": BUILDERS, "deepspeed/ops/op_builder/all_ops.py": all_ops}
    members |= {"deepspeed/git_version_info_installed.py": INSTALLED, "deepspeed/ops/csrc/adam/op.c": SOURCE}
    index.put("deepspeed-0.15.4-py3-none-any.whl", package("deepspeed", "0.15.4", members))
    torch = {
        "torch/__init__.py": "from . import version\n__version__ = '2.6.0+cu124'\n",
        "torch/version.py": f"cuda = {cuda}\n",
        "torch/utils/__init__.py": "",
        "torch/utils/cpp_extension.py": BUILD,
    }
    index.put("torch-2.6.0-py3-none-any.whl", package("torch", "2.6.0", torch))
    distribution = "class Distribution:\n    def __init__(self, attributes):\n        self.attributes = attributes\n"
    index.put("setuptools-75.0-py3-none-any.whl", package("setuptools", "75.0", {"setuptools/__init__.py": distribution}))


def toolkit(folder: Path, release: str = "12.6", *, headers: bool = True, runtime: str = "lib64/libcudart.so") -> Path:
    """Write what the installation needs to see of a CUDA toolkit, with its `runtime` library."""
    library = folder / runtime
    library.parent.mkdir(parents=True)
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(library)], check=True, timeout=60)
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


def loaded(target: Path) -> list[object]:
    """Load the ops that DeepSpeed says it has; return them, the accelerator and the torch that they are for."""
    found: list[object] = json.loads(run(target / "bin" / "python", "-c", LOAD))
    return found


def test_without_cuda_only_the_op_for_cpus(cpu: TestCheckout, index: Index, target: Path, command: list[str]) -> None:
    ended = cpu.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert "compiling cpu_adam of DeepSpeed" in ended.stderr
    torch = {"version": "2.6", "bf16_support": False, "cuda_version": "0.0"}
    assert loaded(target) == [{"cpu_adam": "deepspeed.ops.adam.cpu_adam_op"}, "cpu", torch]
    assert cpu.run("install", "tiny", str(target), "--check").returncode == 0

    # A second call does nothing: it needs no index, and no compiler that works.
    [op] = target.glob(f"{SITE}/deepspeed/ops/adam/cpu_adam_op*.so")
    before = op.stat()
    again = cpu.run(*command, UV_DEFAULT_INDEX="http://127.0.0.1:9", CC="false")
    assert (again.returncode, "compiling" in again.stderr) == (0, False), again.stderr
    assert op.stat() == before


def test_damage_is_found_and_repaired(cpu: TestCheckout, target: Path, command: list[str]) -> None:
    assert cpu.run(*command).returncode == 0
    [op] = target.glob(f"{SITE}/deepspeed/ops/adam/cpu_adam_op*.so")
    op.unlink()
    ended = cpu.run("install", "tiny", str(target), "--check")
    assert ended.returncode == 1
    assert "cpu_adam op: not found" in ended.stdout
    assert "--only pip --ops aot" in ended.stderr
    assert cpu.run(*command).returncode == 0
    assert op.is_file()
    assert cpu.run("install", "tiny", str(target), "--check").returncode == 0


def test_without_the_option_there_are_none(cpu: TestCheckout, target: Path, command: list[str]) -> None:
    assert cpu.run(*command).returncode == 0
    ended = cpu.run(*command[:-2])
    assert ended.returncode == 0, ended.stderr
    assert loaded(target)[:2] == [{}, ""]
    assert not list(target.glob(f"{SITE}/deepspeed/ops/adam/*.so"))
    assert cpu.run("install", "tiny", str(target), "--check").returncode == 0


@pytest.mark.parametrize("runtime", ["lib64/libcudart.so", "lib/libcudart.so.12"], ids=["toolkit", "wheels of NVIDIA"])
def test_with_cuda_both(gpu: TestCheckout, target: Path, command: list[str], tmp_path: Path, runtime: str) -> None:
    ended = gpu.run(*command, CUDA_HOME=str(toolkit(tmp_path / "cuda", runtime=runtime)))
    assert ended.returncode == 0, ended.stderr
    torch = {"version": "2.6", "bf16_support": False, "cuda_version": "12.4"}
    assert loaded(target) == [{op: f"deepspeed.ops.adam.{op}_op" for op in OPS}, "cuda", torch]


def test_prefix_with_conda_packages(cpu: TestCheckout, channel: Channel, target: Path) -> None:
    """What runs in the staging folder records the ops, and the prefix that comes from it has them."""
    cpu.lock("--channel", str(channel.folder))
    command = ["install", "tiny", str(target), "--channel", channel.url, "--ops", "aot"]
    ended = cpu.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert loaded(target)[:2] == [{"cpu_adam": "deepspeed.ops.adam.cpu_adam_op"}, "cpu"]
    assert cpu.run("install", "tiny", str(target), "--check").returncode == 0
    assert "compiling" not in cpu.run(*command).stderr
    # Without the option a DeepSpeed without ops comes back; the conda packages stay.
    assert cpu.run(*command[:-2]).returncode == 0
    assert loaded(target)[:2] == [{}, ""]


@pytest.mark.parametrize("case", ["no toolkit", "only an answer", "another release", "no compiler"])
def test_refused_before_anything_is_installed(
    gpu: TestCheckout, index: Index, target: Path, command: list[str], tmp_path: Path, case: str
) -> None:
    index.downloads.clear()
    environ = {"CUDA_HOME": str(tmp_path / "cuda")}
    if case == "no toolkit":
        said = f"{tmp_path}/cuda: expected a CUDA 12.4 toolkit with nvcc, found none"
    elif case == "only an answer":
        toolkit(tmp_path / "cuda", "12.4", headers=False)
        said = f"{tmp_path}/cuda: expected a CUDA 12.4 toolkit with nvcc, found none"
    elif case == "another release":
        toolkit(tmp_path / "cuda", "11.8")
        said = f"{tmp_path}/cuda/bin/nvcc: expected CUDA 12, found release 11.8"
    else:
        toolkit(tmp_path / "cuda")
        environ["CXX"] = "g++-of-nobody"
        said = "expected a compiler, g++-of-nobody (CXX) not found"
    ended = gpu.run(*command, **environ)
    remedy = "install it, or set CC, CXX and CUDA_HOME; this lock has no compilers and no toolkit for --devel"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"smokehouse: --ops aot: {said}; {remedy}\n"
    assert not target.exists()
    assert not index.downloads


@pytest.mark.parametrize(("name", "devel"), [("qwen2.5-vl", True), ("qwen2.5-vl-cuda13", False)])
def test_the_remedy_is_one_that_the_lock_has(name: str, devel: bool) -> None:
    locked = locks.load(Checkout(Path(__file__).parents[3]), name)
    with pytest.raises(UserError, match="install with --devel" if devel else "this lock has no compilers") as raised:
        ops.require_toolkit(locked, {"PATH": "/nowhere"}, devel=False)
    assert ("install with --devel" in str(raised.value)) == devel


def test_devel_without_a_compiler_in_the_lock(gpu: TestCheckout, target: Path) -> None:
    said = gpu.refused("install", "tiny", str(target), "--devel", "--ops", "aot")
    remedy = "not found; add it to [conda] devel"
    assert said == f"smokehouse: --ops aot: expected gxx_impl_linux-64 in the lock of tiny, {remedy}"
    assert not target.exists()


def test_compiler_that_fails(cpu: TestCheckout, target: Path, command: list[str]) -> None:
    ended = cpu.run(*command, CC="false")
    assert ended.returncode == 2
    assert "cpu_adam: not compiled: " in ended.stderr
    assert "Traceback (most recent call last):\n" not in ended.stderr
    again = cpu.run(*command)
    assert again.returncode == 0, again.stderr
    assert loaded(target)[1] == "cpu"
    assert not list(target.glob(".ops.*"))


def test_lock_without_deepspeed(checkout: TestCheckout, target: Path, command: list[str]) -> None:
    checkout.lock()
    said = checkout.refused(*command)
    assert said == "smokehouse: --ops aot: expected deepspeed in the lock of tiny, not found; drop the option"
    assert not target.exists()
