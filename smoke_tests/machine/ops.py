"""Whether compiled ops have code for the GPUs: flash-attn, bitsandbytes, DeepSpeed's, and those that were compiled before."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from smoke_tests.machine import fatbin, places
from smoke_tests.machine.finding import Finding, ok
from smoke_tests.machine.gpus import Gpu, kernels_for
from smoke_tests.machine.software import Software

# Package, as it is imported -> its libraries with device code, beside or in it; {} is torch's CUDA release.
_LIBRARIES = {
    "flash_attn": ("../flash_attn_2_cuda*.so",),
    "bitsandbytes": ("libbitsandbytes_cuda{}.so",),
    "deepspeed": ("ops/**/*_op*.so",),
    "xformers": ("_C*.so",),
    "causal_conv1d": ("../causal_conv1d_cuda*.so",),
    "apex": ("../*_cuda*.so",),
}
_MOST_FILES = 64  # of one place, against a folder that somebody filled


def check(software: Software, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Yield the libraries of ops that have no code for one of `gpus`, each with what it has."""
    if not gpus or not software.cuda:
        return
    sound = []
    for name, library in [*_installed(software.cuda), *_compiled_before()]:
        compiled = fatbin.architectures(library)
        missing = sorted({gpu.architecture for gpu in gpus if compiled and not kernels_for(gpu.capability, compiled)})
        if missing:
            what = f"{library.name} has code for {', '.join(compiled)}, none of which runs on {', '.join(missing)}"
            yield Finding("warn", what, name, _remedy(name, library))
        elif compiled:
            sound.append(name)
    if sound:
        yield ok("ops", f"{', '.join(dict.fromkeys(sound))}: code for {', '.join(sorted({gpu.architecture for gpu in gpus}))}")


def _remedy(name: str, library: Path) -> str:
    if name == _CACHE:
        return f"delete {library.parent}, so that DeepSpeed compiles it again"
    return f"install a release of {name} that has it, or compile it with TORCH_CUDA_ARCH_LIST"


def _installed(cuda: tuple[int, int]) -> Iterator[tuple[str, Path]]:
    for package, patterns in _LIBRARIES.items():
        found = importlib.util.find_spec(package)
        if not found or not found.origin:
            continue
        folder = Path(found.origin).parent
        for pattern in patterns:
            place = folder.parent if pattern.startswith("../") else folder
            for library in sorted(place.glob(pattern.removeprefix("../").format("".join(map(str, cuda)))))[:_MOST_FILES]:
                yield package.replace("_", "-"), library


_CACHE = "TORCH_EXTENSIONS_DIR"


def extensions() -> Path:
    """Return the folder of ops that were compiled at first use. See: torch.utils.cpp_extension.get_default_build_root."""
    if given := os.environ.get(_CACHE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or places.home() / ".cache", "torch_extensions")


def _compiled_before() -> Iterator[tuple[str, Path]]:
    """Yield what is left of another GPU, for which no program asks before it fails."""
    folder = extensions()
    yield from ((_CACHE, library) for library in sorted([*folder.glob("*/*.so"), *folder.glob("*/*/*.so")])[:_MOST_FILES])
