"""The CUDA toolkit 12.4 and gcc 12 from Debian packages, in the layout of conda-forge."""

import re
from pathlib import Path

from ..unit.channel import Channel, Link
from .debian import unpack

_CUDA = [f"{name}/trixie/non-free" for name in ("nvidia-cuda-toolkit", "nvidia-cuda-dev", "libcudart12", "libcurand10")]
_CUDA += [f"{name}/trixie" for name in ("libthrust-dev", "libcub-dev", "libcu++-dev")]
_GCC = (
    "gcc-12 g++-12 cpp-12 libgcc-12-dev libstdc++-12-dev libgcc-s1 libstdc++6 libgomp1 libmpc3 libmpfr6 libisl23 libgmp10 "
    "binutils-x86-64-linux-gnu libbinutils libctf0 libjansson4 libzstd1 libc6 libc6-dev linux-libc-dev libcrypt-dev"
)
_TARGET = "targets/x86_64-linux"
_SYSROOT = "x86_64-conda-linux-gnu/sysroot"

# NVIDIA's file with the changes of conda-forge. See: https://github.com/conda-forge/cuda-nvcc-impl-feedstock
_PROFILE = f"""\
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
LD_LIBRARY_PATH += $(TOP)/lib:
PATH            += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES        +=  "-I$(TOP)/{_TARGET}/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/{_TARGET}/lib"
"""

# Debian's gcc finds its parts relative to itself, but not the libraries that they need.
_DRIVER = """\
#!/bin/sh
root="$(dirname "$(dirname "$(readlink -f "$0")")")/{sysroot}"
export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu"
exec "$root/usr/bin/x86_64-linux-gnu-{name}-12" --sysroot="$root" -B"$root/usr/bin/x86_64-linux-gnu-" "$@"
"""
# Not needed to compile C++, or for other systems only.
_UNWANTED = re.compile(
    r"^usr/share/|/(lto1|lto-dump|cc1$|gp-|gprof|gconv|audit|plugin|lib[a-z]*san|libc\.a|libm-2)|/libgprofng"
)

Files = dict[str, str | bytes | Link | Path]


def fill(channel: Channel, programs: Path) -> None:
    """Add cuda-nvcc 12.4 and all that compiles DeepSpeed's ops to `channel`; packages are unpacked to `programs`."""
    cuda = _cuda(unpacked(programs))
    gcc = _gcc(unpack([f"{name}/bookworm" for name in _GCC.split()], programs / "gcc").parent)
    channel.archive("cuda-nvcc").unlink()
    depends = ("cuda-version >=12.4,<12.4.9999", "gxx_linux-64", "cuda-cuobjdump")
    lister = {"bin/cuobjdump": cuda.pop("bin/cuobjdump")}
    channel.add("cuda-cuobjdump", "12.4.127", subdir="linux-64", files=lister, index=False)
    channel.add("gxx_linux-64", "12.2.0", subdir="linux-64", files=gcc, index=False)
    channel.add("cuda-nvcc", "12.4.131", subdir="linux-64", depends=depends, files=cuda)


def unpacked(programs: Path) -> Path:
    """The toolkit in the layout of Debian."""
    return unpack(_CUDA, programs / "cuda", without=("*.a", "*/share/*"))


def _cuda(usr: Path) -> Files:
    library, own = usr / "lib" / "x86_64-linux-gnu", usr / "lib" / "nvidia-cuda-toolkit"
    found: Files = {"bin/nvcc": own / "bin" / "nvcc", "bin/nvcc.profile": _PROFILE, "nvvm/bin/cicc": own / "bin" / "cicc"}
    found |= {f"bin/{name}": usr / "bin" / name for name in ("cudafe++", "fatbinary", "nvlink", "ptxas", "cuobjdump")}
    found |= {f"bin/crt/{path.name}": path for path in (own / "bin" / "crt").iterdir()}
    found["nvvm/libdevice/libdevice.10.bc"] = own / "libdevice" / "libdevice.10.bc"
    for path in (usr / "include").rglob("*"):
        if path.is_file():
            found[f"{_TARGET}/include/{path.relative_to(usr / 'include')}"] = path.resolve()
    for name in ("libcudart.so.12", "libcurand.so.10"):
        plain = name.rpartition(".")[0]
        found[f"{_TARGET}/lib/{name}"] = (library / name).resolve()
        found[f"{_TARGET}/lib/{plain}"] = Link(name)
        found[f"lib/{plain}"] = Link(f"../{_TARGET}/lib/{plain}")
    return found


def _gcc(root: Path) -> Files:
    found: Files = {
        f"bin/x86_64-conda-linux-gnu-{name}": _DRIVER.format(sysroot=_SYSROOT, name=name) for name in ("gcc", "g++")
    }
    for top in ("usr", "lib", "lib64"):
        for path in (root / top).rglob("*"):
            place = str(path.relative_to(root))
            if (path.is_symlink() and path.readlink().is_absolute()) or _UNWANTED.search(place):
                continue
            if path.is_symlink() or path.is_file():
                found[f"{_SYSROOT}/{place}"] = path
    # libc.so refers to it by an absolute link of Debian.
    found[f"{_SYSROOT}/lib64/ld-linux-x86-64.so.2"] = Link("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    return found
