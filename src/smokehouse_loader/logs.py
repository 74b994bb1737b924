"""Read training logs: take off what launchers add to lines, separate ranks, and find tracebacks.

Whitespace means nothing in what this module returns to search: consoles and rich wrap messages anywhere, so a `Stream` joins
its lines without any. Line numbers are those of an editor: only a line feed ends a line.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9A-B])")
_DATE = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
# What stands before a message, tried one after the other from the left. `rank` and `source` tell whose line it is.
_PREFIX = re.compile(
    r"\s?\[(?:rank|default)(?P<rank>\d{1,6})\]:? ?"
    r"|\[\d+,(?P<mpi>\d{1,6})\](?:<(?:stdout|stderr)>)?: ?"
    r"| {0,5}(?P<srun>\d{1,5}): "
    r"|(?P<ray>\((?:[\w.<>-]{1,80} )?pid=\d+(?:, ip=[\w.:-]{1,60})?\)) ?"
    r"|(?P<compose>[\w.-]{1,80}) *\| (?![A-Z]{4,12} *(?:\||$)|Status )"
    r"|(?P<pod>\[pod/[\w./-]{1,200}\]) ?"
    r"|(?P<host>(?:worker|node|host|gpu|ip|slave|master)[\w.-]{0,60}): "
    r"|(?P<stream>\[std(?:out|err)\]) ?"
    rf"|(?P<time>\[?{_DATE}\]?(?: std(?:out|err) [FP])?:? ?)"
    r"|(?P<journal>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]{1,60} [\w./-]{1,60}(?:\[\d+\])?: )"
    r"|(?P<rich>\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\] )"
    r"|(?P<glog>\[?[IWEF]\d{3,4} \d\d:\d\d:\d\d[.\d]* [^\]\n]{0,80}\] )"
    r"|(?P<level>\[?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?(?: *[:|-] *| +))"
    r"|(?P<place>\[[\w./-]{1,120}\.(?:py|cpp|cc):\d+(?::\w+)?\] )"
    r"|(?P<quoted>>(?: |$))"
)
_OWNERS = ("rank", "mpi", "srun")
_SOURCES = ("ray", "compose", "pod", "host")
_RECORDS = ("time", "journal", "rich", "glog", "level")
_SIDES = ("│", "┃", "║")
_BORDER = re.compile(r"[╭╰┌└╔╚┏┗][─━═]")
_ASCII_BORDER = re.compile(r"^\+-{3,}.*-{2,}\+\s*$")
_REPEATED = re.compile(r"\s*\[repeated \d+x across cluster\][^\n]*$")
_PLACE_AT_END = re.compile(r"\s+\w+\.py:\d+\s*$")
_TEXTS = ("log", "message", "msg", "text", "event", "exc_info", "exception", "traceback", "stack_trace", "stack")
_LONGEST_FIELD_NAME = 40
_PREFIXES = 8  # at most, on one line
_WIDEST_CONSOLE = 300
_CONSOLES = (80, 100, 120, 132)  # usual widths


@dataclass(frozen=True)
class Line:
    """A line without what its launcher added; one of the file can be several, as of a progress bar or a JSON record."""

    number: int  # in the file, from 1
    order: int  # among all lines, of all streams
    text: str
    starts_record: bool  # it had a time or a level before it


@dataclass(frozen=True)
class Frame:
    """A frame of a traceback."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Raised:
    """An exception in a log, with the lines from its traceback's first to its message's last (positions in the stream)."""

    type: str
    message: str
    frames: tuple[Frame, ...]
    line: int  # of its type, in the file
    order: int  # of that line
    rank: str | None
    first: int
    last: int
    chained: bool  # it was raised from, or while handling, the one before it

    def __str__(self) -> str:
        """Return type and first line of the message, and where it was raised."""
        message = self.message.strip().split("\n")[0]
        text = f"{self.type}: {message[:300]}" if message else self.type
        if not self.frames:
            return text
        frame = self.frames[-1]
        return f"{text} (raised in {frame.function}, {frame.file}:{frame.line})"


@dataclass
class Stream:
    """The lines of one rank or process, as searchable text without whitespace."""

    rank: str | None
    lines: list[Line] = field(default_factory=list)

    @cached_property
    def squeezed(self) -> str:
        """Return all lines joined, without whitespace."""
        return "".join(self._pieces)

    @cached_property
    def _pieces(self) -> list[str]:
        return ["".join(line.text.split()) for line in self.lines]

    @cached_property
    def _starts(self) -> list[int]:
        starts, position = [], 0
        for piece in self._pieces:
            starts.append(position)
            position += len(piece)
        return starts

    def index_at(self, position: int) -> int:
        """Return the index of the line that contains a position of `squeezed`."""
        return bisect_right(self._starts, position) - 1

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the positions in `squeezed` of lines `first` to `last`, inclusive."""
        end = self._starts[last + 1] if last + 1 < len(self.lines) else len(self.squeezed)
        return self._starts[first], end

    def column(self, position: int) -> int:
        """Return how many characters of its line come before a position of `squeezed`, whitespace not counted."""
        return position - self._starts[self.index_at(position)]

    def raised_at(self, index: int) -> Raised | None:
        """Return the exception whose traceback or message line `index` is in."""
        at = bisect_left(self._lasts, index)
        return self.raised[at] if at < len(self.raised) and self.raised[at].first <= index else None

    def chain_of(self, raised: Raised) -> tuple[int, int]:
        """Return the first and the last line of all that was raised from each other with `raised`."""
        at = bisect_left(self._lasts, raised.last)
        first = last = at
        while first > 0 and self.raised[first].chained:
            first -= 1
        while last + 1 < len(self.raised) and self.raised[last + 1].chained:
            last += 1
        return self.raised[first].first, self.raised[last].last

    @cached_property
    def _lasts(self) -> list[int]:
        return [one.last for one in self.raised]

    @cached_property
    def raised(self) -> tuple[Raised, ...]:
        """Return the exceptions, in the order in which they were printed."""
        return tuple(_exceptions(self))


def read(text: str) -> tuple[Stream, ...]:
    """Return the streams of a log: one for each rank that its lines name, one for lines that name none."""
    streams: dict[str | None, Stream] = {}
    physical = _ESCAPES.sub("", text).split("\n")
    width, before, owner, order = _width(physical), "", None, 0
    for number, raw in enumerate(physical, 1):
        for part in raw.removesuffix("\r").split("\r"):
            continued = owner if len(before) == width else None
            for named, line, record in _logical(part):
                owner = continued if named is None else named
                stream = streams.get(owner)
                if stream is None:
                    stream = streams[owner] = Stream(owner)
                stream.lines.append(Line(number, order, line, record))
                order += 1
            before = part
    return tuple(streams.values())


def _width(lines: list[str]) -> int:
    """Return the width at which a console wrapped its lines, 0 if it did not."""
    lengths = [len(line) for line in lines]
    width = max(lengths)
    return width if width in _CONSOLES or (width <= _WIDEST_CONSOLE and lengths.count(width) > 1) else 0


def _logical(raw: str) -> Iterator[tuple[str | None, str, bool]]:
    """Yield (owner, text, starts a record) of a line of the file."""
    owner, text, record = _without_prefixes(raw)
    if text[:1] == "{" and text.rstrip()[-1:] == "}" and (parts := _of_json(text)):
        named, whole = parts
        inner = [_without_prefixes(line) for line in whole.split("\n")]
        for index, (inner_owner, line, _) in enumerate(inner):
            yield inner_owner or named or owner, line, index == 0
        return
    if "\\n" in text and "Traceback (most recent call last):\\n" in text:
        for line in text.replace("\\n", "\n").replace("\\t", "\t").split("\n"):
            yield owner, line, False
        return
    yield owner, text, record


def _of_json(text: str) -> tuple[str | None, str] | None:
    """Return rank and message of a JSON record, None if it is something else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("message"), dict):
        record = record | record["message"]
    texts = [record[name] for name in _TEXTS if isinstance(record.get(name), str)]
    if not texts:
        return None
    rank = next((record[name] for name in ("rank", "global_rank", "local_rank") if name in record), None)
    return None if rank is None else str(rank)[:_LONGEST_FIELD_NAME], "\n".join(texts)


def _without_prefixes(text: str, *, in_box: bool = False) -> tuple[str | None, str, bool]:
    """Return (owner, text, starts a record) of a line without prefixes and boxes; indentation stays."""
    owner = source = None
    record, position = False, 0
    for _ in range(_PREFIXES):
        match = _PREFIX.match(text, position)
        if not match or match.end() == position:
            break
        kind = match.lastgroup or ""
        if kind in _OWNERS:
            owner = match[kind]
        elif kind in _SOURCES:
            source = match[kind]
        record = record or kind in _RECORDS
        position = match.end()
    text = text[position:]
    if source and text.endswith("cluster]"):
        text = _REPEATED.sub("", text)
    if not in_box and text.lstrip().startswith(_SIDES):
        inner = text.strip()[1:].rstrip().removesuffix(text.strip()[0]).removeprefix(" ").rstrip()
        named, text, starts = _without_prefixes(inner, in_box=True)
        return named or _named(owner, source), text, record or starts
    if _BORDER.match(text.lstrip()[:2]) or _ASCII_BORDER.match(text):
        text = _HEADER if "Traceback" in text else ""
    elif text.rstrip()[-1:].isdigit() and ".py:" in text[-80:]:
        text = text[:-80] + _PLACE_AT_END.sub("", text[-80:])
    return _named(owner, source), text, record


def _named(owner: str | None, source: str | None) -> str | None:
    if owner is not None:
        rank = str(int(owner))
        return rank if source is None else f"{rank} of {source}"
    return source


# Tracebacks

_HEADER = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_RICH_FRAME = re.compile(r"^\s*(?P<file>\S+\.py):(?P<line>\d+) in (?P<function>\S+)\s*$")
# NCCL's results, such as ncclSystemError, are lines of the message of an exception, and none themselves.
_TYPE = re.compile(
    r"^(?!nccl[A-Z])(?P<type>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Timeout|Warning|Failure)\d*)(?::(?P<message>.*)|\s*)$"
)
# Of a private class too, but not a function whose name a console wrapped, such as _invoke_run.
_ANY_TYPE = re.compile(r"^(?P<type>(?:[A-Za-z_]\w*\.)*_*[A-Z]\w*)(?::(?P<message>.*)|\s*)$")
_CHAIN = ("During handling of the above exception, another exception occurred", "The above exception was the direct cause of")
_ABOVE = 12  # lines above an exception whose traceback's header is not in the excerpt
_MESSAGE = 60  # lines of a message that are not indented


def _exceptions(stream: Stream) -> Iterator[Raised]:
    lines = stream.lines
    index, chained = 0, False
    header: int | None = None
    frames: list[Frame] = []
    floor = 0  # the first line that belongs to no earlier exception
    while index < len(lines):
        text = lines[index].text
        if "Traceback (most recent call last)" in text:
            header, frames = index, []
        elif frame := _FRAME.match(text) or _RICH_FRAME.match(text):
            frames.append(Frame(frame["file"], int(frame["line"]), frame["function"]))
        elif text.startswith(_CHAIN):
            chained, header, frames = True, None, []
        elif found := _TYPE.match(text) or (_ANY_TYPE.match(text) if header is not None and frames else None):
            last = _end_of_message(lines, index)
            first = header if header is not None else _above(lines, index, floor)
            message = "\n".join([(found["message"] or "").strip(), *(line.text for line in lines[index + 1 : last + 1])])
            yield Raised(
                found["type"],
                message,
                tuple(frames),
                lines[index].number,
                lines[index].order,
                stream.rank,
                first,
                last,
                chained,
            )
            index, floor, header, frames, chained = last, last + 1, None, [], False
        index += 1


def _above(lines: list[Line], index: int, floor: int) -> int:
    """Return the first line of a traceback without its header that ends at `index`; none before `floor`."""
    first = index
    while first > floor and lines[first - 1].text[:1] in (" ", "\t"):
        first -= 1
    return max(floor, min(first, index - _ABOVE))


def _end_of_message(lines: list[Line], index: int) -> int:
    """Return the index of the last line of the message that begins at `index`."""
    last, plain = index, 0
    for position in range(index + 1, len(lines)):
        line = lines[position]
        text = line.text
        if not text.strip():
            continue
        if (
            (line.starts_record and not lines[index].starts_record)
            or "Traceback (most recent call last)" in text
            or text.startswith(_CHAIN)
            or _TYPE.match(text)
        ):
            break
        if text[0] not in " \t":
            plain += 1
            if plain > _MESSAGE:
                break
        last = position
    return last
