"""The GPU architectures that a compiled library has code for, read from the file alone: no CUDA, no cuobjdump."""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

# Of an ELF file: its header, a header of a section, and the sections in which nvcc puts device code.
_ELF = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SECTIONS = (b".nv_fatbin", b"__nv_relfatbin")
# A container of device code, and what is in it: kind, size of the header, size of the code, and its compute capability.
# See: fatbinary_section.h of the CUDA toolkit, and https://github.com/RWTH-ACS/cricket (cpu/cpu-elf2.c).
_CONTAINER = struct.Struct("<IHHQ")
_CODE = struct.Struct("<HHIQIIHHI")
_MAGIC = 0xBA55ED50
_PTX, _BINARY = 1, 2
_ELF_64, _LITTLE = 2, 1


def architectures(library: Path) -> tuple[str, ...]:
    """Return what `library` has device code for, such as sm_90 and compute_90, sorted; nothing for a file without any.

    An architecture of its own only (sm_90a) is listed without its letter. Only headers are read, so that a library of
    1.5 GB takes milliseconds.
    """
    found: set[tuple[int, str]] = set()
    with (
        contextlib.suppress(OSError, ValueError, struct.error, IndexError),  # of a file that is empty, cut off or no library
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for start, end in _device_sections(data):
            found.update(_codes(data, start, end))
    return tuple(f"{prefix}_{number}" for number, prefix in sorted(found))


def _device_sections(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    magic, size, order, *_ = header = _ELF.unpack_from(data)
    if magic != b"\x7fELF" or (size, order) != (_ELF_64, _LITTLE):
        return
    table, count, names = header[8], header[14], header[15]
    sections = [_SECTION.unpack_from(data, table + _SECTION.size * number) for number in range(count)]
    texts = sections[names][4]
    for section in sections:
        name = data[texts + section[0] : texts + section[0] + 32].partition(b"\0")[0]
        if name in _SECTIONS:
            yield section[4], section[4] + section[5]


def _codes(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, str]]:
    """Yield the architecture and the kind of each piece of code between two offsets."""
    while start + _CONTAINER.size <= end:
        magic, _, header, size = _CONTAINER.unpack_from(data, start)
        if magic != _MAGIC:
            start += 8  # containers are aligned, with zeros between them
            continue
        at, until = start + header, min(start + header + size, end)
        while at + _CODE.size <= until:
            kind, _, own, length, *_, architecture = _CODE.unpack_from(data, at)
            if own + length <= 0:
                break
            if kind in (_PTX, _BINARY):
                yield architecture, "compute" if kind == _PTX else "sm"
            at += own + length
        start = max(until, start + _CONTAINER.size)
