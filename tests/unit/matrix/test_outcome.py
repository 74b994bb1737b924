"""Verdicts of ZeRO stages follow from reports: the check that says why counts, and what only followed from it does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import selection
from smokehouse.matrix import outcome
from smokehouse.matrix.cell import ONLY
from smokehouse.matrix.model import DECISIVE

NOT_REACHED = "rank 0: not reached: an earlier step of its job failed"
HANGS = "rank 1: rank 1 hangs in zero3 / train for 120 s, in backward (engine.py:9); logs: /home/me/logs"
KILLED = "rank 0: rank 0 was killed by signal 6 (SIGABRT) in zero3 / load; log: /home/me/rank0.log"
VIEW = "rank 0: RuntimeError: Output 0 is a view (log: /home/me/rank0.log)"


def report(**details: str) -> dict[str, Any]:
    """Return a report of ZeRO-3 in which the checks with a detail failed, but for those whose detail is empty."""
    names = ["checkpoint", "plain run", "generate", *DECISIVE]
    checks = [
        {
            "name": name,
            "zero_stage": 3 if name in (*DECISIVE, "generate") else None,
            "verdict": "failed" if details.get(name.replace(" ", "_")) else "passed",
            "detail": details.get(name.replace(" ", "_"), "fine"),
            "diagnosis": "",
            "seconds": 1.0,
        }
        for name in names
    ]
    return {"checks": checks}


@pytest.mark.parametrize(
    ("details", "verdict", "error"),
    [
        ({}, "works", ""),
        ({"train": VIEW, "parity": NOT_REACHED}, "fails", "train: rank 0: RuntimeError: Output 0 is a view"),
        ({"load": NOT_REACHED, "train": VIEW}, "fails", "train: rank 0: RuntimeError: Output 0 is a view"),
        ({"train": HANGS}, "hangs", "train: rank 1: rank 1 hangs in zero3 / train for 120 s, in backward (engine.py:9)"),
        ({"load": KILLED}, "crashes", "load: rank 0: rank 0 was killed by signal 6 (SIGABRT) in zero3 / load"),
        ({"generate": VIEW, "train": NOT_REACHED}, "fails", "generate: rank 0: RuntimeError: Output 0 is a view"),
        ({"generate": VIEW}, "works", ""),
        ({"plain_run": VIEW, "train": NOT_REACHED}, "fails", "plain run: rank 0: RuntimeError: Output 0 is a view"),
    ],
)
def test_the_check_that_says_why_decides(details: dict[str, str], verdict: str, error: str) -> None:
    found = outcome.stage(outcome.checks([report(**details)]), 3)
    assert (found.verdict, found.error) == (verdict, error)


def test_a_stage_without_verdicts_does_not_work_and_is_open() -> None:
    found = outcome.checks([report()])
    assert outcome.stage(found, 2).verdict == "fails"
    assert outcome.is_open(found, 2)
    assert not outcome.is_open(found, 3)
    assert outcome.is_open(outcome.checks([report(train="rank 0: ended because rank 1 was killed")]), 3)
    assert not outcome.is_open(outcome.checks([report(train=VIEW, resume=NOT_REACHED)]), 3)


def test_the_known_failure_is_that_of_the_check_or_of_one_beside_it() -> None:
    broken = report(train=VIEW, resume=VIEW)
    broken["checks"][-1]["diagnosis"] = "unsafe-pickle: Torch refuses it. Fix: allow it."
    assert outcome.stage(outcome.checks([broken]), 3).failure == "unsafe-pickle"
    later = report()
    assert outcome.stage(outcome.checks([broken, later]), 3).verdict == "works"


def test_the_smoke_test_has_what_a_cell_runs_and_decides_by() -> None:
    chosen = [selection.canonical(name) for name in ONLY.split(",")]
    assert chosen == ONLY.split(",")
    assert {*DECISIVE} <= {*chosen}


def test_a_whole_run_of_a_proven_environment_works(root: Path) -> None:
    fields = json.loads((root / "docs" / "environments" / "qwen2.5-vl.json").read_text())
    found = outcome.checks([fields])
    assert [outcome.stage(found, stage).verdict for stage in (2, 3)] == ["works", "works"]
