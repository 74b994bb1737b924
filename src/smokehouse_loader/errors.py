"""What is wrong, as data and as the one exception that reaches a user."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

# So many findings are named in a message; the rest is counted.
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: which known failure it is, where, what was seen there and what to do."""

    failure: str  # the name of an entry of failures.FAILURES
    where: str  # a file, a parameter, an argument
    what: str
    cure: str
    rank: int | None = None  # the rank that saw it, None outside of a process group

    def __str__(self) -> str:
        """The finding as one line."""
        seen = "" if self.rank is None else f"rank {self.rank}: "
        return " ".join(f"{seen}{self.where}: {self.what}; {self.cure} [{self.failure}]".split())

    def on(self, rank: int | None) -> "Finding":
        """The same, seen by `rank`."""
        return dataclasses.replace(self, rank=rank)


class LoadError(Exception):
    """A load that was refused, or that went wrong. The same on every rank; `findings` has all that was seen, and by whom."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        """Say the first of `findings` in one line, the rest in short."""
        self.findings = tuple(findings)
        first, *others = self.findings
        same = [finding for finding in others if (finding.failure, finding.what) != (first.failure, first.what)]
        text = str(first)
        for finding in same[: _NAMED - 1]:
            text += f" | {finding}"
        hidden = len(others) - len(same[: _NAMED - 1])
        super().__init__(text + (f" | and {hidden} more in .findings" if hidden else ""))

    @property
    def rank(self) -> int | None:
        """The rank that saw the first finding."""
        return self.findings[0].rank

    def __reduce__(self) -> tuple[type["LoadError"], tuple[tuple[Finding, ...]]]:
        """Cross a process border whole."""
        return type(self), (self.findings,)


def shortened(names: Sequence[str], limit: int = 3) -> str:
    """`names` as a list of at most `limit`, the rest counted."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def first_line(error: BaseException) -> str:
    """The type of an error and the first line that it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0] if said else 'no reason given'}"
