"""What is in a layer, read to explain how it differs: within bounds, and with nothing in it unpacked or obeyed.

A layer can be hostile, so tarfile reads no more of it than single headers: some extensions would take it hours. What only some
programs understand ends the reading.

See: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import zstandard

from smokehouse.errors import UserError
from smokehouse.oci.blobs import Reader, decompress
from smokehouse.storage import files

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_RECORDS = 1 << 16  # bytes of one extended header
_COST = 512  # bytes of memory that an entry takes besides its names
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "block device",
    tarfile.DIRTYPE: "folder",
    tarfile.FIFOTYPE: "pipe",
}


@dataclass
class Limits:
    """How much may still be read: bytes of layers, unpacked, and bytes of memory for what is in them."""

    unpacked: int = 20 << 30
    memory: int = 256 << 20

    def take(self, unpacked: int, memory: int) -> None:
        """Count what is about to be read; raises ValueError where it is too much."""
        self.unpacked -= unpacked
        self.memory -= memory
        if self.unpacked < 0 or self.memory < 0:
            raise ValueError("more than is read to explain a difference")


class Entry(NamedTuple):
    """An entry of a layer as its header has it: `mode` in octal, the `owner` and group by number, `mtime` in seconds.

    A file has a `sha256`, a link a `target`, a device its numbers as one. `records` are the names of extended headers.
    """

    kind: str
    mode: str
    owner: str
    mtime: str
    target: str
    sha256: str
    records: str


def entries(blob: Path, media_type: str, name: str, limits: Limits) -> dict[str, Entry]:
    """Return the entries of the layer in the file `blob`, called `name` in messages, by path; raises UserError.

    What is read counts to `limits`.
    """
    try:
        with files.open_regular(blob) as file:
            return dict(_entries(decompress(file, media_type, name), limits))
    except (ValueError, EOFError, OSError, zlib.error, zstandard.ZstdError) as broken:
        raise UserError(f"{name}: cannot be read to explain it: {broken}; do not trust it") from None


def _entries(stream: Reader, limits: Limits) -> Iterator[tuple[str, Entry]]:
    records: dict[str, str] = {}
    while (block := _read(stream, _BLOCK, limits)).strip(b"\0"):
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as invalid:
            raise ValueError(f"a header with an error ({invalid})") from None
        if member.type == tarfile.XHDTYPE and not records and 0 < member.size <= _MAX_RECORDS:
            limits.take(0, _COST + member.size)
            records = _records(_read(stream, member.size + -member.size % _BLOCK, limits)[: member.size])
            continue
        path, target = records.pop("path", member.name), records.pop("linkpath", member.linkname)
        limits.take(0, _COST + len(path) + len(target))
        yield path.rstrip("/"), _entry(member, target, records, stream, limits)
        records = {}


def _entry(member: tarfile.TarInfo, target: str, records: dict[str, str], stream: Reader, limits: Limits) -> Entry:
    kind = _KINDS.get(member.type)
    if kind is None or member.size < 0 or (member.size and kind != "file"):
        raise ValueError(f"a header of type {member.type!r} and size {member.size} for {member.name!r}")
    digest, left = hashlib.sha256(), member.size
    while left:
        part = min(left, _CHUNK)
        digest.update(_read(stream, part, limits))
        left -= part
    _read(stream, -member.size % _BLOCK, limits)
    return Entry(
        kind,
        f"{member.mode:o}",
        f"{member.uid}:{member.gid}",
        str(member.mtime),
        f"{member.devmajor}:{member.devminor}" if "device" in kind else target,
        digest.hexdigest() if kind == "file" else "",
        ", ".join(sorted(records)),
    )


def _read(stream: Reader, size: int, limits: Limits) -> bytes:
    limits.take(size, 0)
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("a stream that ends too early")
    return data


def _records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header, each of which begins with its length; raises ValueError."""
    found, at = {}, 0
    while at < len(data):
        space = data.index(b" ", at, at + len(str(_MAX_RECORDS)) + 1)
        end = at + int(data[at:space])
        key, equals, value = data[space + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data):
            raise ValueError("an extended header with an error")
        found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        at = end
    return found
