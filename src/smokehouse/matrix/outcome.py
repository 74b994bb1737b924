"""From the reports of a cell's smoke tests to the verdict of each ZeRO stage."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from smokehouse.matrix.model import DECISIVE, Check, Stage, Verdict, line

# What every check of a stage needs.
_BEFORE = ("checkpoint", "plain run")
# How the smoke test words the end of a rank that reported nothing itself.
_HANGS = re.compile(r"rank \d+ (?:hangs|is stopped \(SIGSTOP\)) in ")
_CRASHES = re.compile(r"rank \d+ was (?:killed by signal|gone|exited|ended)|ended after rank|was lost: ")
# Where a log is, which is another place on every machine.
_LOG = re.compile(r" ?\(log: [^)]*\)|; logs?: \S+")
_UNREACHED = "not reached: "
_FOLLOWS = (_UNREACHED, "ended because ", "ended after ")


def checks(reports: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Return the checks of a cell's reports, each once: a later report repeats what an earlier one broke off."""
    found: dict[tuple[str, int | None], Check] = {}
    for report in reports:
        for fields in report["checks"]:
            check = Check(
                name=fields["name"],
                zero_stage=fields["zero_stage"],
                verdict=fields["verdict"],
                detail=line(_LOG.sub("", fields["detail"])),
                failure=fields["diagnosis"].partition(":")[0] if fields["verdict"] != "passed" else "",
                seconds=fields["seconds"],
            )
            found[check.name, check.zero_stage] = check
    return list(found.values())


def stage(found: Sequence[Check], number: int) -> Stage:
    """Return what ZeRO stage `number` does, by the checks that decide: of those that did not pass, the first that says why.

    Where none of them does, a check between them ended their job, such as `generate`.
    """
    names = {(name, None) for name in _BEFORE} | {(name, number) for name in DECISIVE}
    relevant = [check for check in found if (check.name, check.zero_stage) in names]
    bad = [check for check in relevant if check.verdict != "passed"]
    missing = [name for name in DECISIVE if not any((check.name, check.zero_stage) == (name, number) for check in relevant)]
    if missing and not bad:
        return Stage(verdict="fails", error=f"no verdict on {', '.join(missing)}")
    if not bad:
        return Stage(verdict="works")
    between = [check for check in found if check.zero_stage == number and check.verdict == "failed"]
    telling = next((check for check in (*bad, *between) if not _follows(check)), bad[0])
    failure = telling.failure or next((check.failure for check in bad if check.failure), "")
    return Stage(verdict=_kind(telling.detail), error=line(f"{telling.name}: {telling.detail}"), failure=failure)


def is_open(found: Sequence[Check], number: int) -> bool:
    """Return whether nothing is known of ZeRO stage `number` yet: its checks never began, or ended with those of another."""
    of_stage = [check for check in found if (check.name in DECISIVE and check.zero_stage == number)]
    before = [check for check in found if check.name in _BEFORE and check.verdict != "passed"]
    if len(of_stage) < len(DECISIVE):
        return True
    bad = [check for check in (*before, *of_stage) if check.verdict != "passed"]
    return bool(bad) and all(map(_follows, bad))


def unreached(check: Check) -> bool:
    """Whether a check never began, as an earlier one ended its job."""
    return check.verdict != "passed" and _said(check).startswith(_UNREACHED)


def _follows(check: Check) -> bool:
    """Whether a check only says that something else broke."""
    return _said(check).startswith(_FOLLOWS)


def _said(check: Check) -> str:
    return re.sub(r"^rank \d+: ", "", check.detail)


def _kind(detail: str) -> Verdict:
    if _HANGS.search(detail):
        return "hangs"
    return "crashes" if _CRASHES.search(detail) else "fails"
