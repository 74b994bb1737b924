"""One rank's outcome of one check."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rank's outcome. `data` is for comparison with other ranks and process groups; `detail` is for people."""

    verdict: str  # passed | failed | known-issue | observed
    detail: str
    data: dict[str, Any] = field(default_factory=dict)


def passed(detail: str, **data: Any) -> Outcome:
    """Return the outcome of a check that holds on this rank."""
    return Outcome("passed", detail, data)


def failed(detail: str, **data: Any) -> Outcome:
    """Return the outcome of a check that does not hold on this rank; `detail` says what is wrong and where."""
    return Outcome("failed", detail, data)


def known_issue(detail: str, **data: Any) -> Outcome:
    """Return the outcome of a check that shows what the environment's known issues describe."""
    return Outcome("known-issue", detail, data)


def observed(outcome: Outcome) -> Outcome:
    """Return `outcome` as what was seen of a version for which nothing is known to expect, where it is a failure."""
    return Outcome("observed", outcome.detail, outcome.data) if outcome.verdict == "failed" else outcome


def judged(problems: list[str], detail: str, **data: Any) -> Outcome:
    """Return `failed` with the first four problems, or `passed` with `detail` where there are none."""
    if not problems:
        return passed(detail, **data)
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return failed("; ".join(problems[:4]) + more, **data)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as one line: its type and the start of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'…' if len(text) > limit else ''}"
