"""What an error or a training log means."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smokehouse_loader.errors import LoadError
from smokehouse_loader.failures import BY_NAME, FAILURES, Failure

# Of a log only so much is read from its end, where the error is, and so much of a line is looked at.
LARGEST_LOG = 64 * 2**20
_LONGEST_LINE = 4000
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Diagnosis:
    """A known failure that was recognised, by the `text` that shows it, in `line` of the log (None for an exception)."""

    failure: Failure
    text: str
    line: int | None

    def __str__(self) -> str:
        """The diagnosis in a few lines."""
        where = f"line {self.line}: " if self.line else ""
        return (
            f"{self.failure.name}: {self.failure.cause}\n  seen:   {where}{self.text}\n"
            f"  cure:   {self.failure.cure}\n  source: {self.failure.source}"
        )


def explain(problem: BaseException | str) -> tuple[Diagnosis, ...]:
    """What `problem`, an exception or the text of a log, means: the known failures in it, the likeliest cause first.

    An exception is looked at with all that it was raised from. Empty where nothing is known. What only victims of another
    rank's failure say comes last.
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
    return tuple(sorted(found.values(), key=lambda seen: (seen.failure.victim, order.index(seen.failure.name))))


def explain_log(file: Path) -> tuple[Diagnosis, ...]:
    """The same for a log file. Raises OSError where it cannot be read."""
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - LARGEST_LOG))
        return explain(log.read(LARGEST_LOG).decode(errors="replace"))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that it was raised from, each once."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]


# One pass over a log for all patterns at once; which of them it was is asked only of a line that has one.
_ANY = re.compile("|".join(f"(?:{pattern})" for failure in FAILURES for pattern in failure.patterns))
# What the loader itself says ends in the failure's name.
_OWN = re.compile(r"\[([a-z0-9-]+)\](?:$| \||\s)")


def _in_text(text: str, *, numbered: bool) -> dict[str, Diagnosis]:
    found: dict[str, Diagnosis] = {}
    lines = _COLOURS.sub("", text).splitlines() or [""]
    # A message may be broken over lines: a line is looked at together with the one behind it.
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
        line = line[:_LONGEST_LINE]
        both = f"{line} {following[:_LONGEST_LINE].strip()}"
        own = [name for name in _OWN.findall(line) if name in BY_NAME] if "LoadError" in line else []
        names = own or ([failure.name for failure in FAILURES if _says(failure, line, both)] if _ANY.search(both) else [])
        for name in names:
            found.setdefault(name, Diagnosis(BY_NAME[name], line.strip()[:300], number if numbered else None))
    return found


def _says(failure: Failure, line: str, both: str) -> bool:
    for pattern in failure.patterns:
        match = re.search(pattern, both)
        if match and match.start() < max(len(line), 1):
            return True
    return False
