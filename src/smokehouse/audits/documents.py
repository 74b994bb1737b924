"""Read JSON that others wrote, bounded and with one meaning."""

from typing import Any

from smokehouse.storage import strict_json


class InvalidError(Exception):
    """A document that is not what it has to be; its text says why, in a few words."""


def one_line(text: str, most: int = 300) -> str:
    """Return the first characters of `text` in one line, without control characters, which a terminal would obey."""
    joined = " ".join(text[: 10 * most].split())[:most]
    return "".join(character if character.isprintable() else "?" for character in joined)


def parse_json(data: bytes, limit: int) -> Any:
    """Return the JSON in `data`; raises InvalidError where it is larger than `limit` bytes, ambiguous or not JSON."""
    if len(data) > limit:
        raise InvalidError(f"more than {limit >> 20} MiB")
    try:
        return strict_json.parse(data)
    except ValueError as wrong:
        raise InvalidError(f"not JSON: {wrong}") from None
