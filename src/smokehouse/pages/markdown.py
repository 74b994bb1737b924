"""Markdown that shows any text literally."""

import re
from collections.abc import Iterable, Sequence

# Everything that can start markup inside a line. An underscore inside a word cannot.
_SPECIAL = re.compile(r"[\\`*\[\]<>|&~!$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: str) -> str:
    """Return Markdown that shows `text` literally, in one line; not for the start of a line."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return _SPECIAL.sub(r"\\\g<0>", line)


def code(text: str) -> str:
    """Return a code block with the lines of `text`, without trailing spaces."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "\n".join("".join(char if char.isprintable() else "?" for char in line).rstrip() for line in text.splitlines())
    return f"{fence}\n{shown}\n{fence}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells in Markdown; a column whose head ends in `:` is right-aligned."""
    aligns = ["---:" if title.endswith(":") else "---" for title in head]
    lines = [[title.removesuffix(":") for title in head], aligns, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def between(text: str, opening: str, closing: str, inner: str) -> str:
    """Return `text` with `inner` as the lines between its lines `opening` and `closing`.

    Raises ValueError unless each occurs once, in this order.
    """
    lines = text.split("\n")
    if lines.count(opening) != 1 or lines.count(closing) != 1 or lines.index(opening) > lines.index(closing):
        raise ValueError(f"expected the lines {opening} and {closing} once each, in this order")
    return "\n".join([*lines[: lines.index(opening) + 1], inner.rstrip("\n"), *lines[lines.index(closing) :]])
