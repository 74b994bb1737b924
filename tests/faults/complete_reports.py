"""A complete report of the committed environment, to break in one place after the other."""

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.locks import LOCK_JSON, LockedEnvironment

NAME = "qwen2.5-vl"
DIGEST = f"sha256:{'d' * 64}"


def locked(root: Path) -> LockedEnvironment:
    """The committed environment with its lock."""
    return locks.load(Checkout(root), NAME)


def report(root: Path) -> dict[str, Any]:
    """What a run in an image of the committed lock left an hour ago: the committed evidence, of that image and hour."""
    environment = locked(root)
    made: dict[str, Any] = copy.deepcopy(json.loads((root / "docs" / "environments" / f"{NAME}.json").read_text()))
    python = next(package.version for package in environment.lock.conda if package.name == "python")
    made["image"] = DIGEST
    made["lock"] = {**environment.lock.files, LOCK_JSON: environment.digest}
    made["versions"] |= {"python": python}
    made["started"] = ago(timedelta(hours=1))
    return made


def ago(age: timedelta) -> str:
    """The time that long ago, as reports write it."""
    return (datetime.now(UTC) - age).isoformat(timespec="seconds")


def entry(made: dict[str, Any], name: str, stage: int | None) -> dict[str, Any]:
    """The check of that name and stage in a report."""
    found: dict[str, Any]
    [found] = [check for check in made["checks"] if (check["name"], check["zero_stage"]) == (name, stage)]
    return found
