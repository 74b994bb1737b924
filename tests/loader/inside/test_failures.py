"""Test that every known failure is reproduced and explained."""

import json
import os
from pathlib import Path

import pytest
import reproductions

from smokehouse_loader import FAILURES, Failure, explain

REPRODUCED = [failure for failure in FAILURES if failure.reproduction]


@pytest.mark.parametrize("failure", REPRODUCED, ids=lambda failure: failure.name)
def test_failure(failure: Failure, slim: Path, real: Path, tmp_path: Path) -> None:
    reproduce = getattr(reproductions, failure.reproduction)
    try:
        texts = reproduce(reproductions.Context(slim, real, tmp_path))
    except reproductions.UnaffectedError as reason:
        note(failure.name, f"unaffected: {reason}")
        return
    for text in texts:
        found = explain(text)
        assert found, f"not explained: {text}"
        assert found[0].failure.name == failure.name, text
    note(failure.name, "reproduced")


def note(name: str, outcome: str) -> None:
    """Record the outcome for test_stacks.py, which checks that each is reproduced on some stack."""
    with Path(os.environ["FAILURE_OUTCOMES"]).open("a") as file:
        file.write(json.dumps([name, outcome]) + "\n")
