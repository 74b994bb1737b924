"""Findings as people read them: lines for a terminal, Markdown for an issue.

`python -m smoke_tests.machine.shown TITLE` turns the JSON of findings into Markdown, for the builder.
"""

import json
import sys
from collections.abc import Sequence

from smoke_tests.machine.finding import Finding

_ORDER = ("fail", "warn", "ok")


def line(finding: Finding) -> str:
    """Return a finding as a line of a terminal."""
    level = "FAIL" if finding.level == "fail" else finding.level
    return f"{level:<5} {finding}"


def markdown(title: str, findings: Sequence[Finding]) -> str:
    """Return findings to paste into an issue: what is wrong first, what is fine folded away."""
    counts = ", ".join(f"{sum(finding.level == level for finding in findings)} {level}" for level in _ORDER)
    wrong = [finding for level in _ORDER[:2] for finding in findings if finding.level == level]
    fine = [finding for finding in findings if finding.level == "ok"]
    lines = [f"**{title}**: {counts}", ""]
    if wrong:
        lines += ["| level | where | what | fix |", "|---|---|---|---|"]
        lines += [_row(finding.level, finding.where, finding.what, finding.fix) for finding in wrong] + [""]
    lines += ["<details><summary>What is fine</summary>", "", "| where | what |", "|---|---|"]
    lines += [_row(finding.where, finding.what) for finding in fine]
    return "\n".join([*lines, "", "</details>"])


def _row(*cells: str) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Return text that is shown as it is in a cell: no markup, no end of the cell or the line."""
    harmless = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return harmless.replace("`", "'").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    print(markdown(sys.argv[1], [Finding(**found) for found in json.load(sys.stdin)]))
