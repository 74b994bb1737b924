"""Build wheels from source distributions: build.py CONTEXT OUT."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import tree

_BUILD = """\
import importlib, os, sys
name, _, attribute = sys.argv[1].partition(":")
sys.path[:0] = sys.argv[4:]
sys.modules["triton"] = None  # deepspeed would make it look for a GPU
exec(sys.argv[3])
backend = importlib.import_module(name)
for part in filter(None, attribute.split(".")):
    backend = getattr(backend, part)
backend.build_wheel(sys.argv[2])
"""

# The oldest CPUs in machines with GPUs of TORCH_CUDA_ARCH_LIST. DeepSpeed would compile for the CPU of this machine and choose
# hand-written code for it. Its files are not changed, because ops that users compile later are for the machine they run on.
_MARCH = "-march=x86-64-v3"
_PORTABLE = f"""\
from op_builder.builder import OpBuilder
OpBuilder.cpu_arch = lambda self: {_MARCH!r}
OpBuilder.simd_width = lambda self: "-D__AVX256__"
"""
_OPS = {
    "DS_BUILD_FUSED_ADAM": "1",
    "DS_BUILD_CPU_ADAM": "1",
    "DS_ACCELERATOR": "cuda",  # without it, a machine without a GPU silently builds ops for the CPU
    "DS_ENABLE_NINJA": "1",
    "DS_NVCC_THREADS": "2",
    "TORCH_CUDA_ARCH_LIST": "8.0;9.0",
    "LDFLAGS": "-Wl,--strip-all",  # symbols contain the names of nvcc's temporary files, and those its process ID
}


def main(context: Path, out: Path) -> None:
    """Build every source distribution of the plan, with no other build dependencies than the plan lists."""
    plan = tree.plan(context)
    out.mkdir(exist_ok=True)
    folder = out.with_name("build")  # the same in every build, because compilers write the path into their output
    folder.mkdir(exist_ok=True)
    tools = folder / "tools"
    for file in plan["build"]:
        tree.check_sha256(context / file["file"], file["sha256"])
        zipfile.ZipFile(context / file["file"]).extractall(tools)
    for file in plan["files"]:
        tree.check_sha256(context / file["file"], file["sha256"])
        _build(context / file["file"], tools, folder, out, plan)
    for path in (tools, folder / "source"):
        shutil.rmtree(path, ignore_errors=True)


def _build(sdist: Path, tools: Path, folder: Path, out: Path, plan: dict[str, Any]) -> None:
    """Build one source distribution to a wheel in `out`; `tools` has its build dependencies."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    [root] = source.iterdir()
    project = root / "pyproject.toml"
    system = tomllib.loads(project.read_text("utf-8")).get("build-system", {}) if project.is_file() else {}
    backend = system.get("build-backend", "setuptools.build_meta:__legacy__")
    prefix = f"/{tree.PREFIX}"
    environ = {
        "PATH": f"{prefix}/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(plan["epoch"]),
        "PYTHONHASHSEED": "0",  # the order of a set is in deepspeed's metadata
        "DS_BUILD_OPS": "0",
    }
    aot = plan["ops"] == "aot" and (root / "op_builder").is_dir()
    if aot:
        environ |= _OPS | {
            "CUDA_HOME": prefix,
            "CC": _compiler("gcc"),
            "CXX": _compiler("g++"),
            "MAX_JOBS": str(os.cpu_count()),
        }
    before = {*out.iterdir()}
    command = [sys.executable, "-B", "-c", _BUILD, backend, str(out), _PORTABLE if aot else "", str(tools), str(root)]
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    if ended.returncode:
        tree.refuse(f"{sdist.name}: build failed: {' '.join((ended.stderr or ended.stdout).splitlines()[-5:])}")
    [wheel] = {*out.iterdir()} - before
    if aot:
        _check_ops(wheel, ended.stdout)


def _check_ops(wheel: Path, output: str) -> None:
    """Refuse a wheel without the ops, with ops for another CPU, or whose CUDA op lacks a GPU of TORCH_CUDA_ARCH_LIST.

    `output` is that of the build, which contains the commands of the compilers.
    """
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        for op in ("cpu_adam", "fused_adam"):
            found = [name for name in archive.namelist() if f"/{op}_op" in name and name.endswith(".so")]
            if len(found) != 1:
                tree.refuse(f"{wheel.name}: expected one {op} op, found {len(found)}; check the toolkit in [conda] devel")
        library = archive.extract(found[0], folder)
        cpus = {*re.findall(r"-march=\S+|-D__AVX512__", output)}
        if cpus != {_MARCH}:
            tree.refuse(
                f"{wheel.name}: expected cpu_adam to be compiled with {_MARCH}, found {' '.join(sorted(cpus)) or 'no -march'}; "
                f"adapt _PORTABLE in docker/steps/build.py to this version of op_builder/builder.py"
            )
        lister = Path("/", tree.PREFIX, "bin", "cuobjdump")
        if not lister.is_file():
            tree.refuse("toolkit: cuobjdump not found, which lists the GPUs of an op; add cuda-cuobjdump to [conda] devel")
        listed = subprocess.run([lister, "--list-elf", library], capture_output=True, text=True)
        for architecture in ("sm_80", "sm_90"):
            if f".{architecture}." not in listed.stdout:
                gpus = " ".join((listed.stdout or listed.stderr).split())
                remedy = "check TORCH_CUDA_ARCH_LIST in docker/steps/build.py"
                tree.refuse(f"{wheel.name}: expected fused_adam for {architecture}, found {gpus}; {remedy}")


def _compiler(name: str) -> str:
    """Return the path of the toolkit's compiler, whose version its nvcc supports."""
    return f"/{tree.PREFIX}/bin/x86_64-conda-linux-gnu-{name}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
