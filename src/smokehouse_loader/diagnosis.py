"""Explain exceptions and training logs by the table of known failures."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smokehouse_loader.errors import LoadError
from smokehouse_loader.failures import BY_NAME, FAILURES, Failure

# Only the end of a log is read, where the error is, and only the beginning of a line is searched. Bytes and characters.
LARGEST_LOG = 64 * 2**20
_LONGEST_LINE = 4000
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Diagnosis:
    """A known failure that was recognised by `text`, in `line` of the log (from 1; None for an exception)."""

    failure: Failure
    text: str
    line: int | None

    def __str__(self) -> str:
        """Return the diagnosis as four lines."""
        where = f"line {self.line}: " if self.line else ""
        return (
            f"{self.failure.name}: {self.failure.cause}\n  found:  {where}{self.text}\n"
            f"  fix:    {self.failure.cure}\n  source: {self.failure.source}"
        )


def explain(problem: BaseException | str) -> tuple[Diagnosis, ...]:
    """Return the known failures in `problem`, an exception or the text of a log, the likeliest cause first.

    An exception is searched with its notes and everything it was raised from. Symptoms of another rank's failure come last.
    Returns an empty tuple if nothing is recognised.
    """
    if isinstance(problem, str):
        found = _in_text(problem, numbered=True)
    else:
        found = {}
        for error in _chain(problem):
            if isinstance(error, LoadError):
                for finding in error.findings:
                    found.setdefault(finding.failure, Diagnosis(BY_NAME[finding.failure], str(finding), None))
            else:
                notes = "\n".join(getattr(error, "__notes__", []))
                for name, diagnosis in _in_text(f"{type(error).__name__}: {error}\n{notes}", numbered=False).items():
                    found.setdefault(name, diagnosis)
    order = [failure.name for failure in FAILURES]
    return tuple(sorted(found.values(), key=lambda one: (one.failure.victim, order.index(one.failure.name))))


def explain_log(file: Path) -> tuple[Diagnosis, ...]:
    """Return the known failures in a log file; see `explain`. Raises OSError if the file cannot be read."""
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - LARGEST_LOG))
        return explain(log.read(LARGEST_LOG).decode(errors="replace"))


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


# Searches a log for all patterns in one pass; single patterns are only tried on lines that match it.
_ANY = re.compile("|".join(f"(?:{pattern})" for failure in FAILURES for pattern in failure.patterns))
# The loader's own messages end in the name of the failure.
_OWN = re.compile(r"\[([a-z0-9-]+)\](?:$| \||\s)")


def _in_text(text: str, *, numbered: bool) -> dict[str, Diagnosis]:
    found: dict[str, Diagnosis] = {}
    lines = _COLOURS.sub("", text).splitlines() or [""]
    # A message may be wrapped, so each line is searched together with the next one.
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
        line = line[:_LONGEST_LINE]
        both = f"{line} {following[:_LONGEST_LINE].strip()}"
        own = [name for name in _OWN.findall(line) if name in BY_NAME] if "LoadError" in line else []
        names = own or ([failure.name for failure in FAILURES if _matches(failure, line, both)] if _ANY.search(both) else [])
        for name in names:
            found.setdefault(name, Diagnosis(BY_NAME[name], line.strip()[:300], number if numbered else None))
    return found


def _matches(failure: Failure, line: str, both: str) -> bool:
    """Return whether a pattern of `failure` matches in `both`, a line and the next one, beginning in `line`."""
    for pattern in failure.patterns:
        match = re.search(pattern, both)
        if match and match.start() < max(len(line), 1):
            return True
    return False
