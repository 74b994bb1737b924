"""DeepSpeed's own Adam ops, compiled when an environment is installed and not when training starts.

They are built as DeepSpeed's setup.py builds them for an image (docker/steps/build.py), from the sources that it installs.
"""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.installs import state
from smokehouse.locks import LockedEnvironment
from smokehouse.programs.process import run
from smokehouse.storage import files

# The key of a marker with the names of the ops that were compiled.
OPS = "ops"
_PACKAGE = "deepspeed"
_FOLDER = Path(_PACKAGE, "ops", "adam")
_INSTALLED = Path(_PACKAGE, "git_version_info_installed.py")  # in which its setup.py says which ops it built, and for what
_COMPILER = "gxx_impl_linux-64"  # the conda package with x86_64-conda-linux-gnu-g++; cuda-nvcc depends on it
_DEADLINE = 3600.0  # seconds: fused_adam alone took 400 on a busy machine
_NVCC_DEADLINE = 30.0
# GPUs and CPUs as in images: whoever shares an installation runs it on other machines than the one that compiled it.
_GPUS = "8.0;9.0"
_COMPILE = """\
import json, sys
out, *names = sys.argv[1:]
sys.modules["triton"] = None  # deepspeed would make it look for a GPU
import torch
from setuptools import Distribution
from torch.utils.cpp_extension import BuildExtension
from deepspeed.ops.op_builder.all_ops import ALL_OPS
from deepspeed.ops.op_builder.builder import OpBuilder
OpBuilder.cpu_arch = lambda self: "-march=x86-64-v3"
OpBuilder.simd_width = lambda self: "-D__AVX256__"
command = BuildExtension(Distribution({"ext_modules": [ALL_OPS[name].builder() for name in names]}))
command.build_lib, command.build_temp = out, out + "/objects"
command.ensure_finalized()
command.run()
short = lambda version: ".".join(version.split(".")[:2])
cuda = torch.version.cuda
print(json.dumps({"version": short(torch.__version__), "cuda_version": short(cuda) if cuda else "0.0"}))
"""


@dataclass(frozen=True)
class Toolkit:
    """What ops are compiled with: the compilers, and the CUDA toolkit or None. Without paths, they are the installation's."""

    names: tuple[str, ...]
    devel: bool = False
    cuda_home: Path | None = None
    cc: str = ""
    cxx: str = ""

    def variables(self, folder: Path) -> dict[str, str]:
        """Return the environment variables with which the installation in `folder` compiles."""
        on_cuda = "fused_adam" in self.names
        found = {"DS_ACCELERATOR": "cuda" if on_cuda else "cpu", "TORCH_CUDA_ARCH_LIST": _GPUS, "MAX_JOBS": str(os.cpu_count())}
        if self.devel:
            compiler = folder / "bin" / "x86_64-conda-linux-gnu-"
            return found | {"CUDA_HOME": str(folder), "CC": f"{compiler}gcc", "CXX": f"{compiler}g++"}
        home = {"CUDA_HOME": str(self.cuda_home)} if self.cuda_home else {}
        return found | home | {"CC": self.cc, "CXX": self.cxx}


def require_toolkit(locked: LockedEnvironment, environ: Mapping[str, str], *, devel: bool) -> Toolkit:
    """Return what the ops of an environment can be compiled with; raises UserError where this machine cannot.

    `devel` is whether the installation has the compilers and the toolkit of the lock. A lock without CUDA has no fused_adam.
    """
    packages = {file.name for file in locked.lock.pip}
    if _PACKAGE not in packages:
        raise UserError(f"--ops aot: expected {_PACKAGE} in the lock of {locked.name}, not found; drop the option")
    on_cuda = any(name.startswith("nvidia-cuda-runtime") for name in packages)
    names = ("cpu_adam", "fused_adam") if on_cuda else ("cpu_adam",)
    if devel:
        needed = {_COMPILER} | ({"cuda-nvcc"} if on_cuda else set())
        if absent := sorted(needed - {package.name for package in locked.lock.conda}):
            raise UserError(
                f"--ops aot: expected {', '.join(absent)} in the lock of {locked.name}, not found; add it to [conda] devel"
            )
        return Toolkit(names, devel=True)
    compilers = {variable: environ.get(variable) or default for variable, default in (("CC", "gcc"), ("CXX", "g++"))}
    found = {variable: shutil.which(program, path=environ.get("PATH")) for variable, program in compilers.items()}
    has_devel = any(package.name == _COMPILER for package in locked.lock.conda)
    remedy = (
        "install with --devel, which has the compilers and the toolkit, without --only pip"
        if has_devel
        else "install it, or set CC, CXX and CUDA_HOME; this lock has no compilers and no toolkit for --devel"
    )
    for variable, path in found.items():
        if not path:
            raise UserError(f"--ops aot: expected a compiler, {compilers[variable]} ({variable}) not found; {remedy}")
    home = _cuda_home(locked.cuda, environ, remedy) if on_cuda else None
    return Toolkit(names, cuda_home=home, cc=str(found["CC"]), cxx=str(found["CXX"]))


def _cuda_home(cuda: str, environ: Mapping[str, str], remedy: str) -> Path:
    """Return the CUDA toolkit of this machine; raises UserError where there is none that compiles for `cuda`."""
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    home = Path(environ["CUDA_HOME"]) if environ.get("CUDA_HOME") else Path(nvcc).resolve().parents[1] if nvcc else None
    # Headers too: environments and runtime images have an nvcc that only answers DeepSpeed's question for the release.
    headers = [*home.glob("include/cuda_runtime.h"), *home.glob("targets/*/include/cuda_runtime.h")] if home else []
    if not home or not headers or not os.access(home / "bin" / "nvcc", os.X_OK):
        where = f"{home}: " if home else ""
        raise UserError(f"--ops aot: {where}expected a CUDA {cuda} toolkit with nvcc, found none; {remedy}")
    ended = run([home / "bin" / "nvcc", "-V"], deadline=_NVCC_DEADLINE, environ=environ, cwd=Path("/"))
    release = re.search(r"release (\d+)\.\d+", ended.stdout)
    if not release or release[1] != cuda.partition(".")[0]:
        said = release[0] if release else "no release"
        raise UserError(f"--ops aot: {home}/bin/nvcc: expected CUDA {cuda.partition('.')[0]}, found {said}; {remedy}")
    return home


def kept(earlier: Mapping[str, str], found: object, toolkit: Toolkit | None) -> dict[str, str]:
    """Return what of `earlier` is not to be installed again: all but a DeepSpeed whose marker `found` has other ops."""
    recorded = found.get(OPS) if isinstance(found, dict) else None
    same = (recorded or []) == (list(toolkit.names) if toolkit else [])
    return {name: digest for name, digest in earlier.items() if same or name != _PACKAGE}


def missing(folder: Path, python: str, marker: Mapping[str, Any]) -> list[str]:
    """Return which ops that a marker lists are not in the environment in `folder`, in words."""
    names, packages = marker.get(OPS) or (), state.site_packages(folder, python)
    return [f"{name} op: not found" for name in names if not list((packages / _FOLDER).glob(f"{name}_op*.so"))]


def compile_ahead(folder: Path, python: str, toolkit: Toolkit, environ: Mapping[str, str]) -> None:
    """Compile the ops of `toolkit` for the environment in `folder`, and record them as DeepSpeed's; raises UserError.

    Does nothing where they are there. `environ` are the variables of the activated environment.
    """
    if not missing(folder, python, {OPS: toolkit.names}):
        return
    packages = state.site_packages(folder, python)
    status(f"compiling {', '.join(toolkit.names)} of DeepSpeed, which takes minutes")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ops.") as out:
        ended = run(
            [folder / "bin" / "python", "-c", _COMPILE, out, *toolkit.names],
            deadline=_DEADLINE,
            environ={**environ, **toolkit.variables(folder), **_linkable(toolkit.cuda_home, Path(out))},
            cwd=packages / _PACKAGE / "ops",  # to which the builders' paths are relative
        )
        built = {op: list(Path(out).glob(f"{_FOLDER}/{op}_op*.so")) for op in toolkit.names}
        absent = [op for op, found in built.items() if len(found) != 1]
        if ended.code or absent:
            said = " ".join((ended.stderr or ended.stdout).split()[-60:])
            raise UserError(f"{', '.join(absent or toolkit.names)}: not compiled: {said}; fix this, or drop --ops aot")
        info = json.loads(ended.stdout.splitlines()[-1])  # after what the compilers say
        for [path] in built.values():
            files.write(packages / _FOLDER / path.name, path.read_bytes())
    _record(packages, toolkit, info)


def _linkable(cuda_home: Path | None, out: Path) -> dict[str, str]:
    """Return variables with which gcc finds the CUDA runtime of NVIDIA's wheels, which have it as libcudart.so.13 alone.

    A toolkit has libcudart.so in lib64, where torch has the linker look. Links it in `out` where there is none.
    """
    if not cuda_home or list(cuda_home.glob("lib*/libcudart.so")):
        return {}
    numbered = sorted((cuda_home / "lib").glob("libcudart.so.[0-9]*"))
    if not numbered:
        return {}
    (out / "libcudart.so").symlink_to(numbered[0].absolute())
    return {"LIBRARY_PATH": os.pathsep.join(filter(None, (str(out), os.environ.get("LIBRARY_PATH"))))}


def _record(packages: Path, toolkit: Toolkit, torch: Mapping[str, str]) -> None:
    """Say to DeepSpeed which ops it has, and for which `torch`; add them to its RECORD."""
    text = (packages / _INSTALLED).read_text("utf-8")
    accelerator = toolkit.variables(packages)["DS_ACCELERATOR"]
    text += f"installed_ops.update(dict.fromkeys({list(toolkit.names)!r}, True))\n"
    text += f"accelerator_name={accelerator!r}\ntorch_info.update({dict(torch)!r})\n"
    files.write(packages / _INSTALLED, text)
    [record] = packages.glob(f"{_PACKAGE}-*.dist-info/RECORD")
    changed = [packages / _INSTALLED]
    changed += [path for name in toolkit.names for path in sorted((packages / _FOLDER).glob(f"{name}_op*.so"))]
    rows = {row[0]: row for row in csv.reader(io.StringIO(record.read_text("utf-8")))}
    for path in changed:
        data = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        name = str(path.relative_to(packages))
        rows[name] = [name, f"sha256={digest}", str(len(data))]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows.values())
    files.write(record, written.getvalue())
