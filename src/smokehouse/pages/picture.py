"""The picture of a compatibility matrix: a square for each cell, a half for each ZeRO stage, a sign and a colour by verdict.

The sign alone tells verdicts apart, so that nobody needs to see colours. Each square is a link to what was measured.

See: https://www.w3.org/TR/SVG2/
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from packaging.version import Version

from smokehouse.matrix.model import STAGES, Cell, Versions, line

_HALF, _SQUARE, _STEP = 20, 40, 54  # pixels: half a square, a square, from one to the next
_LABEL, _HEAD, _GAP, _LEGEND = 108, 64, 12, 26
_INK = "#1c1d21"


class Sign(NamedTuple):
    """How a verdict is drawn: a colour behind a white sign, whose path has its middle at 0, 0; and what it means."""

    colour: str
    path: str
    meaning: str


# In the order of the legend. White on each of the colours has a contrast of 4.5 or more.
SIGNS = {
    "works": Sign("#17652a", "M-6 0 L-2 5 L6 -5", "works"),
    "known": Sign("#7a5000", "M0 -6 L6 5 L-6 5 Z", "fails as a known failure"),
    "fails": Sign("#b3261e", "M-5 -5 L5 5 M5 -5 L-5 5", "fails"),
    "hangs": Sign("#5b3fa0", "M-3 -6 L-3 6 M3 -6 L3 6", "hangs"),
    "crashes": Sign("#8a1c5b", "M1 -7 L-4 1 L4 -1 L-1 7", "crashes"),
    "not installable": Sign("#55585f", "M-6 0 L6 0", "cannot be installed"),
    "not run": Sign("#ffffff", "", "not run"),
}


def sign_of(cell: Cell | None, stage: int) -> str:
    """Return the key in `SIGNS` of what a ZeRO stage does in a cell; None is one that was not run."""
    if cell is None:
        return "not run"
    found = cell.stage(stage)
    return "known" if found.failure and found.verdict == "fails" else found.verdict


def anchor(versions: Versions) -> str:
    """Return the id of a cell in its page."""
    return f"cell-{versions}"


def draw(cells: Sequence[tuple[Versions, Cell | None]], title: str, page: str = "") -> str:
    """Return the picture of cells, measured or not, as SVG. Links lead to `page`, the document itself if empty."""
    blocks = _ordered({versions.torch for versions, _ in cells})
    rows = _ordered({versions.transformers for versions, _ in cells})
    found = {(v.torch, v.transformers, v.deepspeed): (v, cell) for v, cell in cells}
    shapes: list[str] = []
    left = 0
    for torch in blocks:
        columns = _ordered({versions.deepspeed for versions, _ in cells if versions.torch == torch})
        shapes += _axes(left, torch, rows, columns)
        for row, transformers in enumerate(rows):
            for column, deepspeed in enumerate(columns):
                if one := found.get((torch, transformers, deepspeed)):
                    shapes.append(_square(left + _LABEL + column * _STEP, _HEAD + row * _STEP, *one, page))
        left += _LABEL + len(columns) * _STEP + _GAP
    bottom = _HEAD + len(rows) * _STEP
    shapes += _legend(bottom + 16, gaps(cells))
    width, height = max(left, 300), bottom + 16 + _LEGEND * (len(SIGNS) + 1 + bool(gaps(cells)))
    text = f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" {text} '
        f'role="group" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def gaps(cells: Sequence[tuple[Versions, Cell | None]]) -> str:
    """Return what a place without a square means, empty where each has one."""
    pairs = {(versions.torch, versions.deepspeed) for versions, _ in cells}
    rows = {versions.transformers for versions, _ in cells}
    return "" if len(cells) == len(pairs) * len(rows) else "No square: not in the grid, so never run."


def _ordered(versions: set[str]) -> list[str]:
    return sorted(versions, key=Version)


def _axes(left: int, torch: str, rows: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    yield f'<text x="{left + _LABEL}" y="18" font-weight="bold">torch {escape(torch)}</text>'
    yield f'<text x="{left + _LABEL}" y="36">deepspeed</text>'
    yield f'<text x="{left}" y="54">transformers</text>' if not left else ""
    for column, deepspeed in enumerate(columns):
        middle = left + _LABEL + column * _STEP + _HALF
        yield f'<text x="{middle}" y="54" text-anchor="middle">{escape(deepspeed)}</text>'
    for row, transformers in enumerate(rows):
        y = _HEAD + row * _STEP + _HALF + 5
        yield f'<text x="{left + _LABEL - 10}" y="{y}" text-anchor="end">{escape(transformers)}</text>'


def _square(x: int, y: int, versions: Versions, cell: Cell | None, page: str) -> str:
    said = "; ".join(f"ZeRO-{stage} {_in_words(cell, stage)}" for stage in STAGES)
    halves = "".join(_half(x + number * _HALF, y, sign_of(cell, stage)) for number, stage in enumerate(STAGES))
    frame = f'<rect x="{x}" y="{y}" width="{_SQUARE}" height="{_SQUARE}" fill="none" stroke="{_INK}"/>'
    title = f"<title>{escape(f'{versions.words}: {said}')}</title>"
    return f'<a href="{escape(page)}#{escape(anchor(versions))}">{title}{halves}{frame}</a>'


def _in_words(cell: Cell | None, stage: int) -> str:
    if cell is None:
        return "not run"
    found = cell.stage(stage)
    because = found.failure or line(found.error, 120)
    return f"{found.verdict}{f' ({because})' if because else ''}"


def _half(x: int, y: int, key: str) -> str:
    sign = SIGNS[key]
    dashes = f' stroke="{_INK}" stroke-dasharray="2 3"' if key == "not run" else ""
    area = f'<rect x="{x}" y="{y}" width="{_HALF}" height="{_SQUARE}" fill="{sign.colour}"{dashes}/>'
    return area + (_mark(x + _HALF // 2, y + _SQUARE // 2, sign) if sign.path else "")


def _mark(x: int, y: int, sign: Sign) -> str:
    stroke = 'fill="none" stroke="#ffffff" stroke-width="2.5" stroke-linecap="round" stroke-linejoin="round"'
    return f'<path d="{sign.path}" transform="translate({x} {y})" {stroke}/>'


def _legend(top: int, gaps: str) -> Iterator[str]:
    yield f'<text x="0" y="{top + 12}">Left half: ZeRO-2; right half: ZeRO-3.</text>'
    for number, (key, sign) in enumerate(SIGNS.items(), 1):
        y = top + number * _LEGEND
        height = 20
        dashes = f' stroke="{_INK}" stroke-dasharray="2 3"' if key == "not run" else ""
        area = f'<rect x="0" y="{y}" width="{_HALF}" height="{height}" fill="{sign.colour}"{dashes}/>'
        mark = _mark(_HALF // 2, y + height // 2, sign) if sign.path else ""
        yield f'{area}{mark}<text x="{_HALF + 10}" y="{y + 15}">{escape(sign.meaning)}</text>'
    if gaps:
        yield f'<text x="0" y="{top + (len(SIGNS) + 1) * _LEGEND + 15}">{gaps}</text>'
