"""Read the header of a safetensors file, which says where each tensor is, without trusting it.

The format: 8 bytes with the length of the header, little-endian; the header, a JSON object; the tensors, back to back.
Source: the specification of the format in the README of the safetensors project.

Time and memory are bounded for any file: a header is parsed only if it has no more than `MOST_VALUES` values, and numbers are
not multiplied beyond what a file can have. On an idle core the worst header takes a few seconds and less than 1 GB.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smokehouse_loader.errors import clipped

# The limit of safetensors itself.
LARGEST_HEADER = 100_000_000
# JSON values in a header: its limit in bytes alone allows 33 million, of 64 bytes of memory each. A tensor has about eight;
# 61 layers of 384 experts with scales, 140,000 tensors, in a single file would have 1.1 million.
MOST_VALUES = 2_000_000
# No size or offset of a file reaches it; safetensors refuses it too.
_END = 2**63
# Dimensions from which on a product could take for ever; models have five.
_MANY = 9
_LENGTH = 8

# Bytes per element. Types narrower than a byte are left out: no checkpoint to train from has them.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class BadFileError(Exception):
    """An invalid weight file or index; `failure` is the name of a known failure."""

    def __init__(self, failure: str, what: str) -> None:
        """Set `what` was expected and found as the message."""
        super().__init__(what)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as its file describes it; `start` and `stop` are byte offsets into the file, None if unknown."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, BF16, ...
    file: Path
    start: int | None = None
    stop: int | None = None

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def read(file: Path) -> list[Tensor]:
    """Return the tensors of a safetensors file in the order of its header; reads no weights.

    Raises BadFileError if the file is not a complete and valid safetensors file, and OSError if it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _LENGTH, 0)
        if len(start) < _LENGTH:
            raise BadFileError("truncated-shard", f"truncated to {size} bytes, before its header")
        length = int.from_bytes(start, "little")
        if length > min(LARGEST_HEADER, max(size - _LENGTH, 0)):
            refuse_foreign(os.pread(descriptor, 512, 0))
            if length > LARGEST_HEADER:
                raise BadFileError(
                    "not-a-checkpoint", f"not a safetensors file: its first 8 bytes give a header of {length} bytes"
                )
            raise BadFileError("truncated-shard", f"expected a header of {length} bytes, found {size - _LENGTH}")
        text = os.pread(descriptor, length, _LENGTH)
    finally:
        os.close(descriptor)
    return _tensors(file, _parse(text), _LENGTH + length, size)


def refuse_foreign(start: bytes) -> None:
    """Raise BadFileError if `start`, the first bytes of a file, belong to something that replaced the weights."""
    if start.startswith(b"version https://git-lfs"):
        raise BadFileError("not-a-checkpoint", "expected weights, found a Git LFS pointer")
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise BadFileError("not-a-checkpoint", "expected weights, found a web page: the download returned an error page")
    if not start.strip(b"\0"):
        raise BadFileError("truncated-shard", "empty, or begins with zeros: its download did not complete")


def _parse(text: bytes) -> dict[str, Any]:
    """Return the header in `text` as safetensors reads it: UTF-8 without a byte-order mark, and strict JSON."""
    try:
        header = parse_json(text)
    except ValueError as wrong:
        raise BadFileError("broken-header", f"invalid header: {clipped(str(wrong))}") from None
    if not isinstance(header, dict):
        raise BadFileError("broken-header", "header is not a JSON object")
    return header


def parse_json(text: bytes, *, unique: bool = True, strict: bool = True) -> Any:
    """Return the JSON in `text`, UTF-8 without a byte-order mark. Raises ValueError if it is not, or has too many values.

    With `unique`, a name that an object has twice is an error, as it is for safetensors; otherwise the last one counts, as it
    does for transformers. With `strict`, so is NaN, which Python reads.
    """
    # At most this many: those in strings count too.
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > MOST_VALUES:
        raise ValueError(f"expected at most {MOST_VALUES} values, found {values}")
    try:
        return json.loads(
            text.decode(), object_pairs_hook=_unique if unique else None, parse_constant=_no_number if strict else None
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"found {name}, which JSON does not have")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it lists {clipped(repr(duplicate))} twice")
    return found


def _tensors(file: Path, header: dict[str, Any], data: int, size: int) -> list[Tensor]:
    """Return the tensors of a parsed `header`; the file has `size` bytes, its tensors begin at byte `data`."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError("broken-header", "invalid __metadata__ in the header: expected a map of strings")
    found = [_tensor(file, name, entry, data) for name, entry in header.items()]
    at = data
    for start, stop, name in sorted((tensor.start or 0, tensor.stop or 0, tensor.name) for tensor in found):
        if start != at:
            what = f"expected {clipped(repr(name))} at byte {at}, found it at byte {clipped(str(start))}"
            raise BadFileError("broken-header", what)
        at = stop
    if at != size:
        failure = "truncated-shard" if size < at else "broken-header"
        difference = f"{at - size} missing" if size < at else f"{size - at} too many"
        raise BadFileError(failure, f"expected {at} bytes by its header, found {size} ({difference})")
    return found


def _tensor(file: Path, name: str, entry: Any, data: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _bad(name, " has no dtype, shape or data_offsets in the header") from None
    for number in (*shape, start, stop) if isinstance(shape, list) else (None,):
        # A loop, as `all` would make a generator for each of 100,000 tensors.
        if type(number) is not int or not 0 <= number < _END:
            raise _bad(name, " has an invalid shape or invalid data_offsets in the header")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise _bad(name, f" has the unknown dtype {str(dtype)[:20]!r}")
    plain = len(shape) < _MANY and 0 not in shape
    needed = math.prod(shape) * SIZES[dtype] if plain else _product(shape, SIZES[dtype])
    if needed >= _END:
        raise _bad(name, f": more bytes than any file has, for {clipped(str(shape[:9]))} of {dtype}")
    if stop - start != needed:
        raise _bad(name, f": expected {needed} bytes for {clipped(str(shape[:99]))} of {dtype}, found {stop - start}")
    if not name.isascii() and any("\ud800" <= one <= "\udfff" for one in name):
        raise _bad(name, " is not text: half of a surrogate pair")
    return Tensor(name, tuple(shape), dtype, file, data + start, data + stop)


def _bad(name: str, what: str) -> BadFileError:
    return BadFileError("broken-header", f"{clipped(repr(name))}{what}")


def _product(shape: list[int], size: int) -> int:
    """Return the number of bytes of a tensor with elements of `size` bytes, or one that is too large for any file.

    As in safetensors, a zero counts only if the dimensions before it have not been too many.
    """
    product = size
    for number in shape:
        product *= number
        if product >= _END:
            break
    return product
