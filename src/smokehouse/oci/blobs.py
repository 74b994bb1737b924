"""Unpack a compressed layer without looking into it: hash what is in it, within bounds, or read it as a stream."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import zstandard

from smokehouse.errors import UserError

_CHUNK = 1 << 18
_MAX_WINDOW = 1 << 27  # bytes of memory that a zstd stream may request
_FRAME_HEADER = 18  # bytes, at most
_REPEATED, _RESERVED = 1, 3  # kinds of blocks
_SMALLEST_BLOCK, _MORE_BLOCKS = 1 << 10, 1000  # bytes of content, and blocks beside those; compressors fill 1 << 17
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say that the stream has a header of gzip


class Reader(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, fewer at the end of the stream alone."""


def decompress(file: IO[bytes], media_type: str, name: str) -> Reader:
    """Return the tar stream of the layer in `file`, called `name` in messages; raises UserError for another `media_type`."""
    if media_type.endswith("tar"):
        return file
    if media_type.endswith(("tar+gzip", "tar.gzip")):
        return gzip.GzipFile(fileobj=file)
    if media_type.endswith(("tar+zstd", "tar.zstd")):
        return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(file, read_across_frames=True)
    raise UserError(f"{name}: expected a layer of type tar, tar+gzip or tar+zstd, found {media_type!r}; build the image again")


def unpacked_digest(blob: Path, media_type: str, limit: int, name: str) -> tuple[str, int]:
    """Return digest and size of the stream in the file `blob`, an empty digest where it has more than `limit` bytes.

    As `unpack`. Raises UserError, calling the layer `name`.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in unpack(blob, media_type, limit, name):
        size += len(chunk)
        if size > limit:
            return "", size
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}", size


def unpack(blob: Path, media_type: str, limit: int, name: str) -> Iterator[bytes]:
    """Yield the stream in the file `blob`, which is expected to have at most `limit` bytes; whoever reads it stops there.

    The file has exactly one stream of `media_type`: programs differ in what they do with a second one, and with what is no
    stream at all. Raises UserError, calling the layer `name`.
    """
    with blob.open("rb") as file:
        try:
            if media_type.endswith("+gzip"):
                yield from _gunzip(file)
                return
            if media_type.endswith("+zstd"):
                _require_one_frame(file, limit)
                file.seek(0)
            stream = decompress(file, media_type, name)
            while chunk := stream.read(_CHUNK):
                yield chunk
        except (ValueError, EOFError, zlib.error, zstandard.ZstdError) as broken:
            kind = media_type.rpartition(".")[2]
            raise UserError(f"{name}: expected one stream of {kind}, found {broken}; do not trust this image") from None


def largest_blob(unpacked: int) -> int:
    """Return the most bytes that a layer of so many bytes, unpacked, takes as a blob, in whatever way it is compressed."""
    return unpacked + unpacked // 64 + 4096


def _require_one_frame(file: IO[bytes], limit: int) -> None:
    """Raise ValueError unless the file is one frame of zstd, and nothing else, with blocks as a stream of `limit` bytes needs.

    A hole in a file reads as empty blocks without an end.

    See: https://github.com/facebook/zstd/blob/dev/doc/zstd_compression_format.md
    """
    header, blocks, last = file.read(_FRAME_HEADER), 0, False
    if not header.startswith(zstandard.FRAME_HEADER):
        raise ValueError("no frame at its start")
    file.seek(zstandard.frame_header_size(header))
    while not last:
        block = int.from_bytes(file.read(3), "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        blocks += 1
        if kind == _RESERVED or blocks > limit // _SMALLEST_BLOCK + _MORE_BLOCKS:
            raise ValueError("an invalid block" if kind == _RESERVED else f"more than {blocks - 1} blocks")
        if file.seek(1 if kind == _REPEATED else size, os.SEEK_CUR) > os.fstat(file.fileno()).st_size:
            raise EOFError("its end missing")
    checksum = 4 if zstandard.get_frame_parameters(header).has_checksum else 0
    if file.tell() + checksum != os.fstat(file.fileno()).st_size:
        raise ValueError("data after its end, or its end missing")


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    header = file.read(4)
    if len(header) < 4 or header[3]:  # its flags announce a name, a comment or other data
        raise ValueError("a header with more than it needs")
    stream, data = zlib.decompressobj(_GZIP), header
    while data and not stream.eof:
        chunk = stream.decompress(data, _CHUNK)
        if chunk:
            yield chunk
        data = stream.unconsumed_tail or (b"" if stream.eof else file.read(_CHUNK))
    if not stream.eof:
        raise EOFError("its end missing")
    if stream.unused_data or file.read(1):
        raise ValueError("data after its end")
