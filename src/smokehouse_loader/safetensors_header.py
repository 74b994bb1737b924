"""The header of a safetensors file, read without trust: it says where in the file each tensor lies.

The format: 8 bytes with the header's length, little-endian; the header, a JSON object; the tensors, back to back.
Source: the format's specification in the README of the safetensors project.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The limit of safetensors itself.
LARGEST_HEADER = 100_000_000
_LENGTH = 8

# Bytes of one element. The narrower types, of which several share a byte, are not among what a checkpoint is trained from.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class BadFileError(Exception):
    """A file that is not what its name says: `failure` is a name of the table of known failures."""

    def __init__(self, failure: str, what: str) -> None:
        """Say `what` is wrong with it."""
        super().__init__(what)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as its file describes it: `start` and `stop` are its bytes' place in the file, None where it is not known."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # in the words of safetensors: F32, BF16, ...
    file: Path
    start: int | None = None
    stop: int | None = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read(file: Path) -> list[Tensor]:
    """The tensors of the safetensors file `file`, in the order of the header; reads no weights.

    Raises BadFileError where it is not a whole and sound safetensors file, and OSError where it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _LENGTH, 0)
        if len(start) < _LENGTH:
            raise BadFileError("truncated-shard", f"ends after {size} bytes, before its header")
        length = int.from_bytes(start, "little")
        if length > min(LARGEST_HEADER, max(size - _LENGTH, 0)):
            refuse_foreign(os.pread(descriptor, 512, 0))
            if length > LARGEST_HEADER:
                raise BadFileError(
                    "not-a-checkpoint", f"its first 8 bytes name a header of {length} bytes: no safetensors file"
                )
            raise BadFileError("truncated-shard", f"has {size} bytes, {_LENGTH + length - size} too few for its header alone")
        text = os.pread(descriptor, length, _LENGTH)
    finally:
        os.close(descriptor)
    return _tensors(file, _parse(text), _LENGTH + length, size)


def refuse_foreign(start: bytes) -> None:
    """Raise BadFileError where `start`, the first bytes of a file, are those of a file that stands in for weights."""
    if start.startswith(b"version https://git-lfs"):
        raise BadFileError("not-a-checkpoint", "is a Git LFS pointer, not the weights it points to")
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise BadFileError("not-a-checkpoint", "is a web page, not weights: the download got an error page")
    if not start.strip(b"\0"):
        raise BadFileError("truncated-shard", "is empty, or begins with zeros: its download was never finished")


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadFileError("broken-header", f"its header names {twice!r} twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as wrong:
        raise BadFileError("broken-header", f"its header is not JSON: {wrong}") from None
    if not isinstance(header, dict):
        raise BadFileError("broken-header", "its header is not a JSON object")
    return header


def _tensors(file: Path, header: dict[str, Any], data: int, size: int) -> list[Tensor]:
    """The tensors of a parsed `header`; the file has `size` bytes and its tensors begin at `data`."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError("broken-header", "the metadata of its header is not a table of texts")
    found = [_tensor(file, name, entry, data) for name, entry in header.items()]
    at = data
    for start, stop, name in sorted((tensor.start or 0, tensor.stop or 0, tensor.name) for tensor in found):
        if start != at:
            raise BadFileError("broken-header", f"{name!r} begins at byte {start}, where byte {at} is expected")
        at = stop
    if at > size:
        raise BadFileError("truncated-shard", f"has {size} bytes, {at - size} fewer than its header names")
    if at < size:
        raise BadFileError("broken-header", f"has {size} bytes, {size - at} more than its header names")
    return found


def _tensor(file: Path, name: str, entry: Any, data: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise BadFileError("broken-header", f"{name!r} has no dtype, shape or offsets in the header") from None
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise BadFileError("broken-header", f"{name!r} has a shape or offsets that are no sizes")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise BadFileError("broken-header", f"{name!r} is of type {str(dtype)[:20]!r}, which is not known here")
    if stop - start != math.prod(shape) * SIZES[dtype]:
        raise BadFileError("broken-header", f"{name!r} has {stop - start} bytes, its shape {shape} of {dtype} needs others")
    return Tensor(name, tuple(shape), dtype, file, data + start, data + stop)
