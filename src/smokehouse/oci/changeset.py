"""Layers: a folder as the tar stream that containerd's change writer, and so BuildKit, makes of it, byte for byte.

The format is that of Go's archive/tar: USTAR, with a PAX header only for an entry that USTAR cannot express.

See: https://github.com/containerd/containerd/blob/main/pkg/archive/tar.go and
https://github.com/golang/go/blob/master/src/archive/tar/writer.go
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

_BLOCK = 512
_CHUNK = 1 << 20
_NAME, _PREFIX = 100, 155  # bytes of the fields of a header
_TYPES = {"file": b"0", "link": b"2", "folder": b"5"}

_MAGIC = b"ustar\x00" + b"00"

END = bytes(2 * _BLOCK)  # of a stream


class _Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Member:
    """An entry of a layer that belongs to root: `name` is its path in bytes, without a slash at either end.

    A file has a `size` in bytes, a link a `target`. `mtime` is in seconds.
    """

    kind: Literal["file", "link", "folder"]
    name: bytes
    mode: int
    mtime: int
    size: int = 0
    target: bytes = b""


def write_layer(folder: Path, out: _Writer) -> None:
    """Write everything in `folder`, but not itself, to `out` as a layer in which all belongs to root.

    Raises ValueError for what is not a file, a link or a folder, and OSError.
    """
    for path, member in _walk(os.fsencode(folder), b""):
        out.write(header(member))
        if member.kind == "file":
            _copy(path, member.size, out)
    out.write(END)


def header(member: Member) -> bytes:
    """Return the header of an entry; raises ValueError where a number does not fit in USTAR."""
    name = member.name + (b"/" if member.kind == "folder" else b"")
    prefix, suffix = _split(name)
    records = {}
    if (len(name) > _NAME and not prefix) or not name.isascii():
        records[b"path"] = name
    if len(member.target) > _NAME or not member.target.isascii():
        records[b"linkpath"] = member.target
    if not records:
        return _block(member, prefix, suffix or name)
    if len(name) > _NAME:
        records[b"path"] = name
    content = b"".join(_record(key, records[key]) for key in sorted(records))
    return b"".join([_extension(name, len(content)), content, padding(len(content)), _block(member, b"", name)])


def padding(size: int) -> bytes:
    """Return the zeros after `size` bytes of content."""
    return bytes(-size % _BLOCK)


def _walk(folder: bytes, below: bytes) -> Iterator[tuple[bytes, Member]]:
    """Yield each path in `folder` with its entry: sorted by bytes, a folder before what is in it."""
    for base in sorted(os.listdir(folder)):  # noqa: PTH208 - Path has no names in bytes
        path, name = folder + b"/" + base, below + base
        found = os.lstat(path)
        mode, mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
        if stat.S_ISLNK(found.st_mode):
            yield path, Member("link", name, mode, mtime, target=os.readlink(path))  # noqa: PTH115 - see above
        elif stat.S_ISDIR(found.st_mode):
            yield path, Member("folder", name, mode, mtime)
            yield from _walk(path, name + b"/")
        elif stat.S_ISREG(found.st_mode):
            yield path, Member("file", name, mode, mtime, size=found.st_size)
        else:
            raise ValueError(f"{os.fsdecode(path)}: expected a file, a link or a folder")


def _copy(path: bytes, size: int, out: _Writer) -> None:
    left = size
    with open(path, "rb") as file:  # noqa: PTH123 - a path in bytes
        while chunk := file.read(min(left, _CHUNK)):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise ValueError(f"{os.fsdecode(path)}: changed while it was read")
    out.write(padding(size))


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Return prefix and rest of a long name as USTAR splits it, as splitUSTARPath of Go does; empty where it cannot."""
    if len(name) <= _NAME or not name.isascii():
        return b"", b""
    end = _PREFIX + 1 if len(name) > _PREFIX + 1 else len(name) - name.endswith(b"/")
    at = name.rfind(b"/", 0, end)
    rest = len(name) - at - 1
    return (name[:at], name[at + 1 :]) if at > 0 and 0 < rest <= _NAME else (b"", b"")


def _block(member: Member, prefix: bytes, name: bytes) -> bytes:
    kind, mode, size, mtime = _TYPES[member.kind], member.mode, member.size, member.mtime
    device = b"0000000\0"
    return _checked(name, mode, size, mtime, kind, member.target, owner=device, device=device, prefix=prefix)


def _extension(name: bytes, size: int) -> bytes:
    """Return the header of a PAX header of `size` bytes for the entry `name`."""
    folder, _, base = name.rpartition(b"/")
    parts = [part for part in (folder, b"PaxHeaders.0", base) if part]
    extended = _ascii(b"/".join(parts))[:_NAME].rstrip(b"/")
    return _checked(extended, 0, size, 0, b"x", b"", owner=b"0000000\0", device=bytes(8), prefix=b"")


def _checked(
    name: bytes, mode: int, size: int, mtime: int, kind: bytes, target: bytes, *, owner: bytes, device: bytes, prefix: bytes
) -> bytes:
    if mode >= 1 << 21 or size >= 1 << 33 or not 0 <= mtime < 1 << 33:
        raise ValueError(f"{name!r}: mode {mode}, size {size} or time {mtime} does not fit in a USTAR header")
    before = b"".join([_text(name), b"%07o\0" % mode, owner, owner, b"%011o\0" % size, b"%011o\0" % mtime])
    after = b"".join([kind, _text(target), _MAGIC, bytes(64), device, device, prefix.ljust(_PREFIX, b"\0"), bytes(12)])
    checksum = sum(before) + sum(after) + 8 * ord(" ")  # it is computed as if it were spaces
    return b"%b%06o\0 %b" % (before, checksum, after)


def _text(text: bytes) -> bytes:
    """Return a name as a field, cut to its size; a slash at its end would make a file a folder to some programs."""
    kept = _ascii(text)
    field = kept[:_NAME].ljust(_NAME, b"\0")
    if len(kept) > _NAME and field.endswith(b"/"):
        end = len(kept[: _NAME - 1].rstrip(b"/"))
        field = field[:end] + b"\0" + field[end + 1 :]
    return field


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record, which begins with its own length."""
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    total = size + len(str(total))
    return b"%d %b=%b\n" % (total, key, value)
