"""Read JSON that others wrote: one meaning for every reader, or none.

What readers disagree on is refused: a key that occurs twice, NaN and Infinity, a byte-order mark, invalid UTF-8, numbers that
overflow, and nesting that exhausts a parser.

See: RFC 8259, sections 4, 6, 8.1 and 9; RFC 7493
"""

import json
import math
import re
from typing import Any, NoReturn

_DEEPEST = 64  # levels of objects and arrays; what is read here has eight at most
_LONGEST_NUMBER = 40  # characters
# Outside strings there is no other way to write a bracket; strings are taken as a whole.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def parse(data: bytes | str) -> Any:
    """Return the value that `data` is; raises ValueError with what is wrong with it, in one line."""
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError("byte-order mark")
    _refuse_deep(text)
    return json.loads(
        text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float
    )


def _refuse_deep(text: str) -> None:
    depth = 0
    for found in _TOKENS.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            if depth > _DEEPEST:
                raise ValueError(f"nested more than {_DEEPEST} levels deep")
        elif mark in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!r} occurs twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _parse_int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"number of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text) if len(text) <= _LONGEST_NUMBER else math.inf
    if not math.isfinite(number):
        raise ValueError(f"number {text[:20]} is out of range")
    return number
