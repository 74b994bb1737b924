"""Read JSON that others wrote: bounded, without duplicate keys, and without what JSON does not have."""

import json
from typing import Any


class InvalidError(Exception):
    """A document that is not what it has to be; its text says why, in a few words."""


def parse_json(data: bytes, limit: int) -> Any:
    """Return the JSON in `data`; raises InvalidError where it is larger than `limit` bytes, ambiguous or not JSON."""
    if len(data) > limit:
        raise InvalidError(f"more than {limit >> 20} MiB")
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidError("nested too deeply") from None
    except ValueError as wrong:
        raise InvalidError(f"not JSON: {wrong}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        duplicate = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"duplicate key {duplicate[:80]!r}")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
