"""Findings, and the one exception that reaches users."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

# A message spells out this many findings and counts the rest.
_SPELLED_OUT = 3
# Characters of a name from a file in a message; the longest of a published checkpoint have 90.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Finding:
    """One problem: the known failure it is an instance of, where it was found, and how to fix it."""

    failure: str  # the name of an entry of failures.FAILURES
    where: str  # a file, a parameter or an argument
    what: str  # expected and found
    cure: str  # how to fix it, a clause without a full stop
    rank: int | None = None  # the rank that found it, None outside of a process group

    def __str__(self) -> str:
        """Return the finding as one line."""
        prefix = "" if self.rank is None else f"rank {self.rank}: "
        line = " ".join(f"{prefix}{self.where}: {self.what}; {self.cure} [{self.failure}]".split())
        # Names come from files: none may move the cursor of a terminal or break a log's encoding.
        return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)

    def on(self, rank: int | None) -> "Finding":
        """Return the same finding, attributed to `rank`."""
        return dataclasses.replace(self, rank=rank)


class LoadError(Exception):
    """A load that was refused or that failed. The same on every rank: `findings` holds those of all ranks."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        """Build a one-line message from the first of `findings`, followed by those that differ from it."""
        self.findings = tuple(findings)
        first, *others = self.findings
        different = [finding for finding in others if (finding.failure, finding.what) != (first.failure, first.what)]
        shown = [first, *different[: _SPELLED_OUT - 1]]
        hidden = len(self.findings) - len(shown)
        super().__init__(" | ".join(map(str, shown)) + (f" | and {hidden} more in .findings" if hidden else ""))

    @property
    def rank(self) -> int | None:
        """The rank that found the first problem."""
        return self.findings[0].rank

    def __reduce__(self) -> tuple[type["LoadError"], tuple[tuple[Finding, ...]]]:
        """Pickle with all findings, so that the error survives a process boundary."""
        return type(self), (self.findings,)


def shortened(names: Sequence[str], limit: int = 3) -> str:
    """Return the first `limit` names as a list, followed by the number of the others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(clipped, names[:limit])) + rest


def clipped(text: str) -> str:
    """Return `text`, or its beginning if it is longer than a name in a message should be."""
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def first_line(error: BaseException) -> str:
    """Return the type of `error` and the first line of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"
