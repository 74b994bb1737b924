"""Build wheels from source distributions: build.py IN OUT."""

import hashlib
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

sys.path.insert(0, str(Path(__file__).parent))

import tree

_BUILD = """\
import importlib, os, sys
name, _, attribute = sys.argv[1].partition(":")
sys.path[:0] = sys.argv[4:]
sys.modules["triton"] = None  # deepspeed would import it, and it would look for a GPU
exec(sys.argv[3])
backend = importlib.import_module(name)
for part in filter(None, attribute.split(".")):
    backend = getattr(backend, part)
backend.build_wheel(sys.argv[2])
"""

# The oldest CPUs in machines with these GPUs. deepspeed compiles for the CPU that it is built on, with hand-written
# code for it. Its own files stay unchanged, for users who compile other ops on their machine.
_MARCH = "-march=x86-64-v3"
_PORTABLE = f"""\
from op_builder.builder import OpBuilder
OpBuilder.cpu_arch = lambda self: {_MARCH!r}
OpBuilder.simd_width = lambda self: "-D__AVX256__"
"""
_OPS = {
    "DS_BUILD_FUSED_ADAM": "1",
    "DS_BUILD_CPU_ADAM": "1",
    "DS_ACCELERATOR": "cuda",  # without a GPU, ops for the CPU would be built silently
    "DS_ENABLE_NINJA": "1",
    "DS_NVCC_THREADS": "2",
    "TORCH_CUDA_ARCH_LIST": "8.0;9.0",
    "LDFLAGS": "-Wl,--strip-all",  # names of nvcc's temporary files contain its process ID, and become symbols
}


def main(given: Path, out: Path) -> None:
    """Build every source distribution of the plan, with exactly the build requirements in it."""
    plan = tree.plan(given)
    out.mkdir()
    folder = out.with_name("build")  # the same path in every build, because compilers write it to their output
    folder.mkdir()
    tools = folder / "tools"
    for file in plan["build"]:
        _check(given / file["file"], file["sha256"])
        zipfile.ZipFile(given / file["file"]).extractall(tools)
    for file in plan["files"]:
        _check(given / file["file"], file["sha256"])
        _build(given / file["file"], tools, folder, out, plan)
    shutil.rmtree(folder)


def _build(sdist: Path, tools: Path, folder: Path, out: Path, plan: dict[str, object]) -> None:
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
        "PYTHONHASHSEED": "0",  # deepspeed turns a set into a list, in its metadata
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
        tree.refuse(f"{sdist.name} cannot be built: {' '.join((ended.stderr or ended.stdout).splitlines()[-5:])}")
    [made] = {*out.iterdir()} - before
    if aot:
        _check_ops(made, ended.stdout)


def _check_ops(made: Path, said: str) -> None:
    """Refuse a wheel without the ops, for another CPU, or without code for one of the GPUs.

    `said` is the output of the build, with the command lines of the compilers.
    """
    with zipfile.ZipFile(made) as wheel, tempfile.TemporaryDirectory() as folder:
        for op in ("cpu_adam", "fused_adam"):
            found = [name for name in wheel.namelist() if f"/{op}_op" in name and name.endswith(".so")]
            if len(found) != 1:
                tree.refuse(f"{made.name}: {op} was not built; look at the toolkit")
        library = wheel.extract(found[0], folder)
        cpus = {*re.findall(r"-march=\S+|-D__AVX512__", said)}
        if cpus != {_MARCH}:
            tree.refuse(f"{made.name}: cpu_adam is for {' '.join(sorted(cpus))}; read op_builder/builder.py again")
        lister = Path("/", tree.PREFIX, "bin", "cuobjdump")
        if not lister.is_file():
            tree.refuse("the toolkit has no cuobjdump, which says for which GPUs an op is; add cuda-cuobjdump to [conda] devel")
        listed = subprocess.run([lister, "--list-elf", library], capture_output=True, text=True)
        for architecture in ("sm_80", "sm_90"):
            if f".{architecture}." not in listed.stdout:
                seen = " ".join((listed.stdout or listed.stderr).split())
                tree.refuse(f"{made.name}: fused_adam is not for {architecture}: {seen}")


def _compiler(name: str) -> str:
    """Return the path of the toolkit's own compiler, which its nvcc accepts."""
    return f"/{tree.PREFIX}/bin/x86_64-conda-linux-gnu-{name}"


def _check(file: Path, sha256: str) -> None:
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        tree.refuse(f"{file.name}: not the file that the lock names")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
