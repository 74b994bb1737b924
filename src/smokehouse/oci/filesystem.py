"""The file system of an image, read from its layers without unpacking them to disk.

Layers are tar streams that may be hostile: whatever could hide a file or exhaust memory is refused.

See: https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

import gzip
import hashlib
import tarfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol, Self, cast

import zstandard

from smokehouse.errors import UserError

_CHUNK = 1 << 20
_MAX_WINDOW = 1 << 27  # bytes of memory that a zstd stream may request
_MAX_HEADER = 1 << 20  # bytes of one extended header, which tarfile reads in one piece
_WHITEOUT = ".wh."
_OPAQUE_WHITEOUT = ".wh..wh..opq"
_SUPPORTED = frozenset({tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, *tarfile.REGULAR_TYPES})
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

# The devices of a Debian base image by path; container runtimes mount their own over them. Any other device is refused.
_DEBIAN_DEVICES = {
    "dev/null": (1, 3),
    "dev/zero": (1, 5),
    "dev/full": (1, 7),
    "dev/random": (1, 8),
    "dev/urandom": (1, 9),
    "dev/tty": (5, 0),
    "dev/console": (5, 1),
    "dev/ptmx": (5, 2),
}


@dataclass(frozen=True)
class Limits:
    """The most `unpacked` bytes and `entries` that one image may have, over all of its layers."""

    unpacked: int = 100 << 30
    entries: int = 2_000_000


@dataclass(frozen=True)
class Entry:
    """A file, symbolic link, folder or device of an image.

    A file has a `sha256`, a link a `target`. `layer` is the index of the layer that added it, `attributes` are the names
    of its extended attributes.
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
    """The file system of an image: `entries` by path, without a leading slash."""

    limits: Limits = field(default_factory=Limits)
    entries: dict[str, Entry] = field(default_factory=dict)
    unpacked: int = 0
    count: int = 0
    _inside: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def apply(self, blob: Path, media_type: str, name: str, layer: int) -> str:
        """Apply the layer in the file `blob`, called `name` in messages; return the digest of the unpacked stream.

        Raises UserError for a layer that is invalid, has paths outside of the image or unsupported entries, or exceeds the
        limits.
        """
        with blob.open("rb") as file:
            source = _HashingReader(decompress(file, media_type, name), self.limits.unpacked - self.unpacked, name)
            try:
                # tarfile only reads from it.
                stream = cast("IO[bytes]", source)
                with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_Member) as tar:
                    for member in tar:
                        self.count += 1
                        if self.count > self.limits.entries:
                            raise UserError(
                                f"{name}: expected at most {self.limits.entries} entries, found more; do not trust this image"
                            )
                        self._add(tar, member, name, layer)
                    ended = tar.offset
                while source.read(_CHUNK):
                    pass
            except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError, ValueError, RecursionError) as broken:
                reason = str(broken) or type(broken).__name__
                raise UserError(f"{name}: invalid layer ({reason}); fetch or build the image again") from None
        if source.end > ended:
            # A program that reads on where tarfile stops would find files that are not in this tree.
            raise UserError(f"{name}: data after the end of the layer, or an invalid header; do not trust this image")
        self.unpacked += source.count
        return f"sha256:{source.digest.hexdigest()}"

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, layer: int) -> None:
        path = _path(member.name, name)
        if not path:
            return
        folder, _, base = path.rpartition("/")
        self._require_folders(folder, path, name)
        if base == _OPAQUE_WHITEOUT:
            for inside in list(self._inside[folder]):
                self._remove(f"{folder}/{inside}" if folder else inside, layer)
            return
        if base.startswith(_WHITEOUT):
            hidden = base.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise UserError(f"{name}: invalid whiteout {path}; do not trust this image")
            self._remove(f"{folder}/{hidden}" if folder else hidden, layer)
            return
        if not (member.isdir() and self._is_folder(path)):
            self._remove(path, layer + 1)
        self.entries[path] = self._entry(tar, member, path, name, layer)
        self._inside[folder].add(base)

    def _entry(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, name: str, layer: int) -> Entry:
        if member.ischr() and _DEBIAN_DEVICES.get(path) == (member.devmajor, member.devminor):
            return Entry("device", layer, member.mode & 0o7777, (member.uid, member.gid), target=path)
        if member.type not in _SUPPORTED or member.issparse():
            raise UserError(f"{name}: {path} is a device, pipe or sparse file, none of which an image needs; do not trust it")
        mode, owner = member.mode & 0o7777, (member.uid, member.gid)
        attributes = tuple(sorted(key for key in member.pax_headers if key.startswith("SCHILY.xattr.")))
        if member.isdir():
            return Entry("folder", layer, mode, owner, attributes=attributes)
        if member.issym():
            return Entry("link", layer, mode, owner, target=member.linkname)
        if member.islnk():
            target = _path(member.linkname, name)
            self._require_folders(target.rpartition("/")[0], path, name)
            linked = self.entries.get(target)
            if linked is None or linked.kind != "file":
                raise UserError(f"{name}: {path} is a hard link to {target}, which is not a file; do not trust this image")
            return Entry("file", layer, linked.mode, linked.owner, linked.size, linked.sha256, attributes=linked.attributes)
        return Entry("file", layer, mode, owner, member.size, _hashed(tar, member, path), attributes=attributes)

    def _is_folder(self, path: str) -> bool:
        entry = self.entries.get(path)
        return bool(entry and entry.kind == "folder")

    def _require_folders(self, folder: str, path: str, name: str) -> None:
        """Raise UserError where a parent of `path` is a link or a file: the entry would be unpacked elsewhere."""
        while folder:
            entry = self.entries.get(folder)
            if entry and entry.kind != "folder":
                raise UserError(f"{name}: {path} is below {folder}, which is a {entry.kind}; do not trust this image")
            if entry:
                return  # its own parents were checked when it was added
            folder = folder.rpartition("/")[0]

    def _remove(self, path: str, below: int) -> None:
        """Remove `path` and everything in it that a layer before `below` added."""
        waiting = [path]
        while waiting:
            current = waiting.pop()
            waiting += [f"{current}/{inside}" for inside in self._inside.get(current, ())]
            entry = self.entries.get(current)
            if entry and entry.layer < below:
                del self.entries[current]
                folder, _, base = current.rpartition("/")
                self._inside[folder].discard(base)


def _hashed(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> str:
    """Return the SHA-256 of a file; raises tarfile.ReadError."""
    content = tar.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{path} has no content")
    digest, size = hashlib.sha256(), 0
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if size != member.size:
        raise tarfile.ReadError(f"{path} is truncated")
    return digest.hexdigest()


class _Member(tarfile.TarInfo):
    """A tar header, refused when its extension is too large to be read in one piece."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > _MAX_HEADER:
            raise UserError(f"tar header: expected at most {_MAX_HEADER} bytes, found {member.size}; do not trust this image")
        return member


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _HashingReader:
    """A reader that hashes and counts its bytes, up to a limit; `end` is the offset after the last byte that is not zero."""

    def __init__(self, source: _Reader, limit: int, name: str) -> None:
        self.source, self.limit, self.name = source, limit, name
        self.count = self.end = 0
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        data = self.source.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        if length := len(data.rstrip(b"\0")):
            self.end = self.count + length
        self.count += len(data)
        if self.count > self.limit:
            raise UserError(
                f"{self.name}: expected at most {self.limit} bytes when unpacked, found more; do not trust this image"
            )
        self.digest.update(data)
        return data


def decompress(file: IO[bytes], media_type: str, name: str) -> _Reader:
    """Return a reader of the tar stream in `file`; raises UserError for an unsupported `media_type`."""
    if media_type.endswith("tar"):
        return file
    if media_type.endswith(("tar+gzip", "tar.gzip")):
        return gzip.GzipFile(fileobj=file)
    if media_type.endswith(("tar+zstd", "tar.zstd")):
        return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(file, read_across_frames=True)
    raise UserError(f"{name}: expected a layer of type tar, tar+gzip or tar+zstd, found {media_type!r}; build the image again")


def _path(raw: str, name: str) -> str:
    """Return the path of a tar entry in canonical form, empty for the root; raises UserError where it is outside."""
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in raw:
        raise UserError(f"{name}: the path {raw!r} is outside the image; do not trust this image")
    return "/".join(parts)
