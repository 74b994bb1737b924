"""Every entry of the table of known failures, reproduced and explained."""

import json
import os
from pathlib import Path

import pytest
import reproductions

from smokehouse_loader import FAILURES, Failure, explain


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_failure(failure: Failure, slim: Path, real: Path, tmp_path: Path) -> None:
    reproduce = getattr(reproductions, failure.reproduction)
    try:
        texts = reproduce(reproductions.Bench(slim, real, tmp_path))
    except reproductions.NotHere as absent:
        note(failure.name, f"not here: {absent}")
        return
    for text in texts:
        found = explain(text)
        assert found, f"not explained: {text}"
        assert found[0].failure.name == failure.name, text
    note(failure.name, "reproduced")


def note(name: str, outcome: str) -> None:
    """Tell the driver, which sees to it that each is reproduced on some stack."""
    with open(os.environ["FAILURES_SEEN"], "a") as file:
        file.write(json.dumps([name, outcome]) + "\n")
