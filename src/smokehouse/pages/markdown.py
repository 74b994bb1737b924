"""Markdown that shows text from anywhere as it is."""

import re
from collections.abc import Iterable, Sequence

# All that can start something in the middle of a line. An underscore inside a word cannot.
_SPECIAL = re.compile(r"[\\`*\[\]<>|&~!$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: str) -> str:
    """Return Markdown that shows `text`, whatever it is, as it is and in one line; not for the start of a line."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return _SPECIAL.sub(r"\\\g<0>", line)


def code(text: str) -> str:
    """Return a block that shows the lines of `text` as they are, less the spaces at their ends."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "\n".join("".join(char if char.isprintable() else "?" for char in line).rstrip() for line in text.splitlines())
    return f"{fence}\n{shown}\n{fence}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already; a column whose head ends in `:` is set flush right."""
    aligns = ["---:" if title.endswith(":") else "---" for title in head]
    lines = [[title.removesuffix(":") for title in head], aligns, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def between(text: str, opening: str, closing: str, inner: str) -> str:
    """Return `text` with `inner` as the lines between its lines `opening` and `closing`.

    Raises ValueError unless each stands there once, in this order.
    """
    lines = text.split("\n")
    if lines.count(opening) != 1 or lines.count(closing) != 1 or lines.index(opening) > lines.index(closing):
        raise ValueError(f"it needs the lines {opening} and {closing}, each once and in this order")
    return "\n".join([*lines[: lines.index(opening) + 1], inner.rstrip("\n"), *lines[lines.index(closing) :]])
