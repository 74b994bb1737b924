"""Find the signs of failures in the streams of a log, in time that grows linearly with its length."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from smokehouse_loader.failures.model import Sign
from smokehouse_loader.logs import Raised, Stream

_GAP = 400  # characters, at most, that {} stands for
_AROUND = 30  # lines after a text that is not in a traceback, which may be needed to understand it
_BEFORE = 4
_MOST = 20_000  # occurrences of a text that are tried
_HOLES = {
    "{n}": r"\d{1,20}",
    "{w}": r"[\w./:+@-]{1,300}?",
    "{0}": r"(?:torch\.Size\(\[0\]\)|Size\(\[0\]\)|\[0\])",
    "{shape}": r"(?:torch\.Size\()?\[[1-9]\d{0,11}(?:,\d{1,12}){0,7}\]\)?",
    "{/}": r"(?!\d)",
}
_HOLE = re.compile("|".join(map(re.escape, _HOLES)))
_OTHER = " || "
_ITEM = re.compile(r"""(?:\[|\{)?["'](?P<name>[^"']{1,300})["'],?""")
# A row of transformers 5's report of a load.
_ROW = re.compile(r"^\s*(?P<names>[\w.\-/{},\s]{1,300}?)\s*\|\s*(?P<status>[A-Z]{4,12})\b")
_STATUS = re.compile(r"\|([A-Z]{4,12})$")
_LONGEST_ROW = 400


@dataclass(frozen=True)
class Pattern:
    """A text with holes: pieces that follow each other, each at most 400 characters after the one before."""

    anchor: str  # how the first piece begins, without holes
    pieces: tuple[re.Pattern[str], ...]

    def matches(self, text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield begin and end of each occurrence between `start` and `end`."""
        end = len(text) if end is None else end
        position = text.find(self.anchor, start, end)
        while position >= 0:
            stop = self._end(text, position, end)
            if stop is not None:
                yield position, stop
            position = text.find(self.anchor, position + len(self.anchor), end)

    def _end(self, text: str, position: int, end: int) -> int | None:
        first, *others = self.pieces
        match = first.match(text, position, end)
        for piece in others:
            if match is None:
                return None
            match = piece.search(text, match.end(), min(end, match.end() + _GAP + 400))
        return None if match is None else match.end()


def lines_with(signs: Sequence[Sign], text: str) -> list[str]:
    """Return the lines that have the text of one of `signs`, whatever stands around them."""
    patterns = [pattern(sign.text) for sign in signs]
    lines = ((line, "".join(line.split())) for line in text.splitlines())
    return [line for line, squeezed in lines if any(next(one.matches(squeezed), None) for one in patterns)]


@dataclass(frozen=True)
class Match:
    """An occurrence of a sign, at a position of its stream; `raised` if it is in a traceback."""

    stream: Stream
    position: int
    end: int
    raised: Raised | None

    @property
    def line(self) -> int:
        """The number of its line in the file."""
        return self.stream.lines[self.stream.index_at(self.position)].number

    @property
    def order(self) -> int:
        """The order of its line among all lines."""
        return self.stream.lines[self.stream.index_at(self.position)].order

    @property
    def text(self) -> str:
        """The line, or as much of a long one as the sign is in."""
        text = self.stream.lines[self.stream.index_at(self.position)].text.strip()
        return text if len(text) <= 300 else self._part(text)

    def _part(self, text: str) -> str:
        wanted, seen = self.stream.column(self.position), 0
        for start, character in enumerate(text):
            if seen >= wanted and not character.isspace():
                begin = max(0, start - 20)
                return f"{'…' if begin else ''}{text[begin : begin + 300]}…"
            seen += not character.isspace()
        return text[:300]


@cache
def pattern(text: str) -> Pattern:
    """Return the pattern of a text of a sign. Raises ValueError if it does not begin with a text that can be searched."""
    squeezed = "".join(text.split())
    anchor = re.split("|".join(map(re.escape, (*_HOLES, "{}"))), squeezed)[0]
    if len(anchor) < 3:
        raise ValueError(f"{text}: expected a text without a hole at its beginning")
    return Pattern(anchor, tuple(re.compile(_regex(piece)) for piece in squeezed.split("{}") if piece))


def fragments(text: str) -> list[str]:
    """Return what is constant in a text of a sign, without whitespace."""
    squeezed = "".join(text.split())
    return [part for part in re.split("|".join(map(re.escape, (*_HOLES, "{}"))), squeezed) if part]


def _regex(piece: str) -> str:
    parts, position = [], 0
    for hole in _HOLE.finditer(piece):
        parts += [re.escape(piece[position : hole.start()]), _HOLES[hole[0]]]
        position = hole.end()
    return "".join([*parts, re.escape(piece[position:])])


class Searcher:
    """A log that is searched for signs; it remembers what it has searched for."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        """Search in `streams`."""
        self._streams = streams
        self._in_log: dict[str, bool] = {}
        self._in_part: dict[tuple[int, int, int, str], bool] = {}
        self._fits: dict[tuple[int, str | int, str, str, str], bool] = {}
        self._lists: dict[int, dict[int, list[str]]] = {}
        self._latest: dict[int, tuple[int, int]] = {}

    def first(self, sign: Sign) -> Iterator[Match]:
        """Yield the first occurrence of `sign` in each stream."""
        if not all(map(self._anywhere, sign.log)) or any(map(self._anywhere, sign.unless_log)):
            return
        for stream in self._streams:
            if match := self._first(sign, stream):
                yield match

    def _first(self, sign: Sign, stream: Stream) -> Match | None:
        for position, end in itertools.islice(pattern(sign.text).matches(stream.squeezed), _MOST):
            index = stream.index_at(position)
            raised = stream.raised_at(index)
            part = stream.span(*(stream.chain_of(raised) if raised else _around(stream, index)))
            if not all(self._within(stream, part, text) for text in sign.needs):
                continue
            if any(self._within(stream, part, text) for text in sign.unless):
                continue
            if self._names_fit(sign, stream, end):
                return Match(stream, position, end, raised)
        return None

    def is_in(self, signs: Sequence[Sign], stream: Stream, raised: Raised) -> bool:
        """Return whether one of `signs` is in what was raised with `raised`."""
        part = stream.span(*stream.chain_of(raised))
        return any(
            self._within(stream, part, sign.text) and all(self._within(stream, part, text) for text in sign.needs)
            for sign in signs
        )

    def _names_fit(self, sign: Sign, stream: Stream, end: int) -> bool:
        """Return whether the keys that are listed after a text are those that `sign` requires."""
        if not (sign.any_name or sign.all_names or sign.no_name):
            return True
        status = _STATUS.search(stream.squeezed[max(0, end - 20) : end])
        key = (id(stream), status[1] if status else end, sign.any_name, sign.all_names, sign.no_name)
        if key not in self._fits:
            names = self._in_rows(stream, status[1]) if status else self._in_list(stream, end)
            self._fits[key] = bool(names) and not (
                (sign.any_name and not any(re.search(sign.any_name, name) for name in names))
                or (sign.all_names and not all(re.search(sign.all_names, name) for name in names))
                or (sign.no_name and any(re.search(sign.no_name, name) for name in names))
            )
        return self._fits[key]

    def _in_rows(self, stream: Stream, status: str) -> list[str]:
        """Return the keys in the rows of transformers 5's report that have a status."""
        rows = [row for line in stream.lines if (row := _ROW.match(line.text[:_LONGEST_ROW])) and row["status"] == status]
        return [row["names"].strip() for row in rows]

    def _in_list(self, stream: Stream, start: int) -> list[str]:
        """Return the keys in the list that begins at `start`; none if that is inside a list that was read before."""
        lists = self._lists.setdefault(id(stream), {})
        if start not in lists:
            names, end = [], start
            first, last = self._latest.get(id(stream), (0, 0))
            within = first < start < last
            while not within and (item := _ITEM.match(stream.squeezed, end)):
                names.append(item["name"])
                end = item.end()
            if not within:
                self._latest[id(stream)] = (start, end)
            lists[start] = names
        return lists[start]

    def _anywhere(self, text: str) -> bool:
        if text not in self._in_log:
            self._in_log[text] = any(_found(stream.squeezed, 0, len(stream.squeezed), text) for stream in self._streams)
        return self._in_log[text]

    def _within(self, stream: Stream, part: tuple[int, int], text: str) -> bool:
        key = (id(stream), *part, text)
        if key not in self._in_part:
            self._in_part[key] = _found(stream.squeezed, *part, text)
        return self._in_part[key]


def _found(text: str, start: int, end: int, alternatives: str) -> bool:
    return any(next(pattern(one).matches(text, start, end), None) for one in alternatives.split(_OTHER))


def _around(stream: Stream, index: int) -> tuple[int, int]:
    return max(0, index - _BEFORE), min(len(stream.lines) - 1, index + _AROUND)
