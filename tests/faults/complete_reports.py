"""A complete report of the committed environment, to break in one place after the other."""

import copy
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.locks import LockedEnvironment

from ..integration import reports

NAME = "qwen2.5-vl"
DIGEST = f"sha256:{'d' * 64}"


def locked(root: Path) -> LockedEnvironment:
    """The committed environment with its lock."""
    return locks.load(Checkout(root), NAME)


def report(root: Path) -> dict[str, Any]:
    """What a run in an image of the committed lock left an hour ago, with every check and control of its plan."""
    return copy.deepcopy(_made(root))


@cache
def _made(root: Path) -> dict[str, Any]:
    return reports.complete(root, root, DIGEST, NAME, seconds=60.0)


def ago(age: timedelta) -> str:
    """The time that long ago, as reports write it."""
    return (datetime.now(UTC) - age).isoformat(timespec="seconds")


def entry(made: dict[str, Any], name: str, stage: int | None) -> dict[str, Any]:
    """The check of that name and stage in a report."""
    found: dict[str, Any]
    [found] = [check for check in made["checks"] if (check["name"], check["zero_stage"]) == (name, stage)]
    return found
