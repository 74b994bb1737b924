"""One container engine for all tests of images, and the programs that they need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import Engine, present, started


@pytest.fixture(scope="session")
def programs(root: Path) -> Path:
    """The folder of the programs that are unpacked for the tests, kept for the next run."""
    return root / "build" / "programs"


@pytest.fixture(scope="session")
def engine(programs: Path) -> Iterator[Engine]:
    """The machine's engine, or one of the tests' own."""
    if found := present():
        yield found
        return
    with started(programs / "engine") as engine:
        yield engine
