"""Explain exceptions and training logs by the table of known failures."""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smokehouse_loader import logs
from smokehouse_loader.errors import LoadError
from smokehouse_loader.failures import BY_NAME, FAILURES, Failure
from smokehouse_loader.logs import Raised, Stream
from smokehouse_loader.signs import Match, Searcher

# Only the end of a log is read, where the error is. Bytes.
LARGEST_LOG = 64 * 2**20
# What launchers raise when a process of theirs has ended: never the first cause.
_OF_LAUNCHERS = ("ChildFailedError", "SignalException", "CalledProcessError", "KeyboardInterrupt", "SystemExit", "RayTaskError")
_VICTIMS = tuple(sign for failure in FAILURES if failure.victim for sign in failure.signs)
ATTACH = (
    "attach to an issue the log of the first rank that failed, from its first warning on, what `python "
    "-m smoke_tests preflight` "
    "prints, and the versions of torch, transformers and deepspeed"
)


@dataclass(frozen=True)
class Diagnosis:
    """A known failure that was recognised by `text`, in `line` of the log (from 1; None for an exception), of `rank`."""

    failure: Failure
    text: str
    line: int | None
    rank: str | None = None

    def __str__(self) -> str:
        """Return the diagnosis as lines."""
        where = ", ".join([f"line {self.line}"] * bool(self.line) + [f"rank {self.rank}"] * (self.rank is not None))
        return (
            f"{self.failure.name}: {self.failure.cause}\n  found:  {f'{where}: ' if where else ''}{self.text}\n"
            f"  fix:    {self.failure.cure}\n  source: {self.failure.source}"
        )

    def among_others(self) -> str:
        """Return the diagnosis with what tells it apart from others, and what to find out."""
        more = {"apart": self.failure.apart, "ask": self.failure.question}
        return "\n".join([str(self), *(f"  {name + ':':<7} {text}" for name, text in more.items() if text)])


@dataclass(frozen=True)
class Explanation:
    """What a log was found to say.

    `found` are the known failures, the likeliest cause first, and `echoes` what followed from them or from `first`, the
    exception that ended the first rank (None if the log has none). Nothing is `found` where `first` is unknown and the rest
    followed from it.
    """

    found: tuple[Diagnosis, ...]
    echoes: tuple[Diagnosis, ...]
    first: Raised | None

    def __str__(self) -> str:
        """Return what was found, with what tells several causes apart, or what ended the first rank and what to do."""
        shown = [one.among_others() if len(self.found) > 1 or one.failure.question else str(one) for one in self.found]
        if self.first is not None and not self.found:
            of = "the run" if self.first.rank is None else f"rank {self.first.rank}, which failed first,"
            shown.append(f"{of} ended with, in line {self.first.line}: {self.first}")
        if self.echoes:
            shown.append(f"{'what followed' if self.found or self.first else 'also'}: {', '.join(map(_in_short, self.echoes))}")
        return "\n\n".join(shown if self.found else [*shown, ATTACH])


def explain(problem: BaseException | str) -> tuple[Diagnosis, ...]:
    """Return the known failures in `problem`, an exception or the text of a log, the likeliest cause first.

    An exception is searched with its traceback, its notes and everything it was raised from. What followed from a failure of
    another rank comes last. Returns an empty tuple if nothing is recognised.
    """
    if isinstance(problem, str):
        explanation = explain_text(problem)
        return explanation.found + explanation.echoes if explanation.found else ()
    found: dict[str, Diagnosis] = {}
    for error in reversed([*_chain(problem)]):  # what was raised first is the cause
        if isinstance(error, LoadError):
            for finding in error.findings:
                found.setdefault(finding.failure, Diagnosis(BY_NAME[finding.failure], str(finding), None))
        else:
            for one in explain("".join(traceback.format_exception(type(error), error, error.__traceback__, chain=False))):
                found.setdefault(one.failure.name, Diagnosis(one.failure, one.text, None))
    return tuple(sorted(found.values(), key=lambda one: (one.failure.victim, one.failure.harmless)))


def explain_log(file: Path) -> Explanation:
    """Return the known failures in a log file; see `explain`. Raises OSError if the file cannot be read."""
    return explain_text(read_log(file))


def read_log(file: Path) -> str:
    """Return the text at the end of a log file, at most `LARGEST_LOG` bytes of it. Raises OSError if it cannot be read."""
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - LARGEST_LOG))
        return _decoded(log.read(LARGEST_LOG))


def explain_text(text: str) -> Explanation:
    """Return what the text of a log says; see `explain`."""
    streams = logs.read(text)
    searcher = Searcher(streams)
    first = _first_raised(streams, searcher)
    found: dict[str, tuple[Match, int]] = {}
    for order, failure in enumerate(FAILURES):
        matches = [match for sign in failure.signs for match in searcher.first(sign)]
        if matches:
            found[failure.name] = (min(matches, key=lambda match: match.order), order)
    for match, name in _own(streams):
        if name not in found or match.order < found[name][0].order:
            found[name] = (match, -1)
    for name in [name for name in found if name in found]:
        for excluded in BY_NAME[name].excludes:
            found.pop(excluded, None)
    ordered = sorted(found, key=lambda name: _order(BY_NAME[name], *found[name]))
    causes = [name for name in ordered if not _is_echo(BY_NAME[name], found[name][0], first)]
    if not causes and not (first and _is_unknown(first, found.values())):
        causes, ordered = ordered, []
    diagnoses = {name: _diagnosis(name, found[name][0]) for name in found}
    echoes = [name for name in ordered if name not in causes]
    return Explanation(tuple(diagnoses[name] for name in causes), tuple(diagnoses[name] for name in echoes), first)


def _decoded(content: bytes) -> str:
    if (content[:2], content[3:4]) == (b"\xff\xfe", b"\0") or (content[:2], content[2:3]) == (b"\xfe\xff", b"\0"):
        # what PowerShell writes
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8", errors="replace")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and everything it was raised from, each once."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if sys.version_info >= (3, 11) and isinstance(one, BaseExceptionGroup):  # noqa: F821 - Python 3.10 has none
            waiting += one.exceptions
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]


# The loader's own messages end in the name of the failure.
_OWN = re.compile(r"\[([a-z0-9-]+)\](?:$| \||\s)")


def _own(streams: Sequence[Stream]) -> Iterator[tuple[Match, str]]:
    """Yield what the loader itself reported in a log."""
    for stream in streams:
        for index, line in enumerate(stream.lines):
            if "LoadError" in line.text:
                for name in _OWN.findall(line.text):
                    if name in BY_NAME:
                        begin, end = stream.span(index, index)
                        yield Match(stream, begin, end, stream.raised_at(index)), name


def _order(failure: Failure, match: Match, order: int) -> tuple[bool, bool, int, int]:
    """Return the place of a failure: causes first, by the lines where their tracebacks begin, then as in the table."""
    at = match.order
    if match.raised:
        at = match.stream.lines[match.stream.chain_of(match.raised)[0]].order
    return failure.victim, failure.harmless, at, order


def _first_raised(streams: Sequence[Stream], searcher: Searcher) -> Raised | None:
    """Return the exception that ended the first rank that failed: the last of its chain."""
    raised = sorted(
        ((one.order, number, one) for number, stream in enumerate(streams) for one in stream.raised), key=lambda key: key[:2]
    )
    for _, number, one in raised:
        if one.type.rpartition(".")[2] not in _OF_LAUNCHERS and not searcher.is_in(_VICTIMS, streams[number], one):
            break
    else:
        if not raised:
            return None
        _, number, one = raised[0]
    return streams[number].raised_at(streams[number].chain_of(one)[1])


def _is_echo(failure: Failure, match: Match, first: Raised | None) -> bool:
    """Return whether a failure is not the cause: it is of a kind that follows from others, and `first` came before it."""
    if failure.victim or failure.harmless:
        return True
    return failure.may_follow and first is not None and first.order < match.order and not _is_in(match, first)


def _is_unknown(first: Raised, found: Iterable[tuple[Match, int]]) -> bool:
    return not any(_is_in(match, first) for match, _ in found)


def _is_in(match: Match, raised: Raised) -> bool:
    if match.stream.rank != raised.rank:
        return False
    first, last = match.stream.chain_of(raised)
    return first <= match.stream.index_at(match.position) <= last


def _in_short(diagnosis: Diagnosis) -> str:
    return f"{diagnosis.failure.name} (line {diagnosis.line})"


def _diagnosis(name: str, match: Match) -> Diagnosis:
    return Diagnosis(BY_NAME[name], match.text, match.line, match.stream.rank)
