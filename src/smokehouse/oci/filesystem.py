"""Layers: the file system that an image has, read from tar streams that may be hostile, and never unpacked."""

import gzip
import hashlib
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Self

import zstandard

from smokehouse.errors import UserError

_CHUNK = 1 << 20
_WINDOW = 1 << 27  # bytes that a zstd stream may make us remember
_HEADER = 1 << 20  # bytes of one extended header, which tarfile reads in one piece
_PIECE = 16 << 20  # bytes of one file that is kept
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_PLAIN = frozenset({tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, *tarfile.REGULAR_TYPES})
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

# What Debian's own file system has in /dev, by name; runtimes put theirs over it, and any other device is refused.
_DEVICES = {
    "dev/null": (1, 3),
    "dev/zero": (1, 5),
    "dev/full": (1, 7),
    "dev/random": (1, 8),
    "dev/urandom": (1, 9),
    "dev/tty": (5, 0),
    "dev/console": (5, 1),
    "dev/ptmx": (5, 2),
}

Keep = Callable[[str], bool]


@dataclass(frozen=True)
class Limits:
    """What one image may have: `unpacked` bytes and `entries`, over all of its layers."""

    unpacked: int = 100 << 30
    entries: int = 2_000_000


@dataclass(frozen=True)
class Entry:
    """A file, symbolic link, folder or plain device of an image.

    `sha256` is of a file, `target` of a link; `layer` is the position of the layer that it comes from, `attributes` are
    its extended ones.
    """

    kind: Literal["file", "link", "folder", "device"]
    layer: int
    mode: int
    owner: tuple[int, int]
    size: int = 0
    sha256: str = ""
    target: str = ""
    attributes: tuple[str, ...] = ()


@dataclass
class Tree:
    """The file system of an image. `entries` go by path, without a leading slash; `kept` has the content of some files."""

    limits: Limits = field(default_factory=Limits)
    entries: dict[str, Entry] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    unpacked: int = 0
    seen: int = 0
    _inside: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def apply(self, blob: Path, media_type: str, name: str, layer: int, keep: Keep = lambda path: False) -> str:
        """Put the layer in the file `blob`, called `name` in messages, on top; return the digest of the unpacked stream.

        The content of files whose path `keep` says is kept. Raises UserError for a layer that is damaged, leaves the
        image's folder, has a device, or is larger than the limits.
        """
        with blob.open("rb") as file:
            source = _Counted(_opened(file, media_type, name), self.limits.unpacked - self.unpacked, name)
            try:
                with tarfile.open(fileobj=source, mode="r|", bufsize=_CHUNK, tarinfo=_Member) as tar:  # type: ignore[call-overload]
                    for member in tar:
                        self.seen += 1
                        if self.seen > self.limits.entries:
                            raise UserError(f"{name}: more than {self.limits.entries} entries in this image; do not trust it")
                        self._add(tar, member, name, layer, keep)
                    ended = tar.offset
                while source.read(_CHUNK):
                    pass
            except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError, ValueError, RecursionError) as broken:
                said = str(broken) or type(broken).__name__
                raise UserError(f"{name}: the layer is damaged ({said}); fetch the image again, or build it again") from None
        if source.last > ended:
            # Whoever reads on where tarfile stops would see files that are not seen here.
            raise UserError(f"{name}: the layer goes on after its end, or has a damaged header; do not trust it")
        self.unpacked += source.count
        return f"sha256:{source.digest.hexdigest()}"

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, layer: int, keep: Keep) -> None:
        path = _path(member.name, name)
        if not path:
            return
        folder, _, base = path.rpartition("/")
        self._refuse_detour(folder, path, name)
        if base == _OPAQUE:
            for inside in list(self._inside[folder]):
                self._remove(f"{folder}/{inside}" if folder else inside, layer)
            return
        if base.startswith(_WHITEOUT):
            hidden = base.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise UserError(f"{name}: {path} hides no file; do not trust this image")
            self._remove(f"{folder}/{hidden}" if folder else hidden, layer)
            return
        if not (member.isdir() and self._is_folder(path)):
            self._remove(path, layer + 1)
        self.entries[path] = self._entry(tar, member, path, name, layer, keep)
        self._inside[folder].add(base)

    def _entry(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, name: str, layer: int, keep: Keep) -> Entry:
        if member.ischr() and _DEVICES.get(path) == (member.devmajor, member.devminor):
            return Entry("device", layer, member.mode & 0o7777, (member.uid, member.gid), target=path)
        if member.type not in _PLAIN or member.issparse():
            raise UserError(f"{name}: {path} is a device, a pipe or a sparse file, which no image needs; do not trust it")
        mode, owner = member.mode & 0o7777, (member.uid, member.gid)
        attributes = tuple(sorted(key for key in member.pax_headers if key.startswith("SCHILY.xattr.")))
        if member.isdir():
            return Entry("folder", layer, mode, owner, attributes=attributes)
        if member.issym():
            return Entry("link", layer, mode, owner, target=member.linkname)
        if member.islnk():
            target = _path(member.linkname, name)
            self._refuse_detour(target.rpartition("/")[0], path, name)
            linked = self.entries.get(target)
            if linked is None or linked.kind != "file":
                raise UserError(f"{name}: {path} is a hard link to {target}, which is no file; do not trust this image")
            if target in self.kept and keep(path):
                self.kept[path] = self.kept[target]
            return Entry("file", layer, linked.mode, linked.owner, linked.size, linked.sha256, attributes=linked.attributes)
        content = tar.extractfile(member)
        assert content
        digest = hashlib.sha256()
        held: list[bytes] | None = [] if keep(path) and member.size <= _PIECE else None
        size = 0
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if held is not None:
                held.append(chunk)
        if size != member.size:
            raise tarfile.ReadError(f"{path} ends early")
        if held is not None:
            self.kept[path] = b"".join(held)
        return Entry("file", layer, mode, owner, size, digest.hexdigest(), attributes=attributes)

    def _is_folder(self, path: str) -> bool:
        entry = self.entries.get(path)
        return bool(entry and entry.kind == "folder")

    def _refuse_detour(self, folder: str, path: str, name: str) -> None:
        """Raise UserError where a folder above `path` is a link or a file, so that the entry would land elsewhere."""
        while folder:
            entry = self.entries.get(folder)
            if entry and entry.kind != "folder":
                raise UserError(f"{name}: {path} lies below {folder}, which is a {entry.kind}; do not trust this image")
            if entry:
                return  # it was seen when it came that those above are folders
            folder = folder.rpartition("/")[0]

    def _remove(self, path: str, below: int) -> None:
        """Take away what lies at `path`, and all in it, as far as it comes from a layer before `below`."""
        waiting = [path]
        while waiting:
            current = waiting.pop()
            waiting += [f"{current}/{inside}" for inside in self._inside.get(current, ())]
            entry = self.entries.get(current)
            if entry and entry.layer < below:
                del self.entries[current]
                self.kept.pop(current, None)
                folder, _, base = current.rpartition("/")
                self._inside[folder].discard(base)


class _Member(tarfile.TarInfo):
    """A header whose extensions are of a size that can be read in one piece."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > _HEADER:
            raise UserError(f"a header of {member.size} bytes in a layer of the image; do not trust it")
        return member


class _Counted:
    """Hashes and counts what is read from a stream, up to a limit; `last` is where its last byte but zero ends."""

    def __init__(self, source: IO[bytes], limit: int, name: str) -> None:
        self.source, self.limit, self.name = source, limit, name
        self.count = self.last = 0
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        data = self.source.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        if full := len(data.rstrip(b"\0")):
            self.last = self.count + full
        self.count += len(data)
        if self.count > self.limit:
            raise UserError(f"{self.name}: unpacks to more than this image may have; do not trust it")
        self.digest.update(data)
        return data


def _opened(file: IO[bytes], media_type: str, name: str) -> IO[bytes]:
    if media_type.endswith("tar"):
        return file
    if media_type.endswith(("tar+gzip", "tar.gzip")):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if media_type.endswith(("tar+zstd", "tar.zstd")):
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file, read_across_frames=True)
    raise UserError(f"{name}: a layer of type {media_type!r}; known are tar, tar+gzip and tar+zstd")


def _path(given: str, name: str) -> str:
    """Return a path in a layer as the tree has it, empty for its root; raises UserError where it leads out."""
    parts = [part for part in given.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in given:
        raise UserError(f"{name}: the path {given!r} leads out of the image; do not trust it")
    return "/".join(parts)


def folders(paths: Iterable[str]) -> set[str]:
    """Return every folder that one of `paths` lies in."""
    found: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in found:
            found.add(path)
    return found
