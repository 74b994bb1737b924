"""The difference between two locks, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smokehouse.console import size
from smokehouse.locks.model import Lock, LockedFile


@dataclass(frozen=True)
class Change:
    """One package that is added, removed or changed. `old` and `new` are versions, `download` is in bytes."""

    group: Literal["conda", "pip", "build"]
    package: str
    old: str | None
    new: str | None
    download: int

    def as_json(self) -> dict[str, Any]:
        """Return it as `lock --json` prints it."""
        return {
            "half": self.group,
            "package": self.package,
            "old": self.old,
            "new": self.new,
            "download": self.download,
        }


def between(old: Lock | None, new: Lock) -> list[Change]:
    """Return how the artefacts of `new` differ from those of `old`, sorted by group and name."""
    found = []
    for group, packages in _groups(new).items():
        before = {package.name: package for package in (_groups(old)[group] if old else ())}
        after = {package.name: package for package in packages}
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if not (was and now and was.sha256 == now.sha256):
                found.append(Change(group, name, _version(was, now), _version(now, was), now.size if now else 0))
    return found


def _groups(lock: Lock) -> dict[Literal["conda", "pip", "build"], tuple[LockedFile, ...]]:
    return {"conda": lock.conda, "pip": lock.pip, "build": lock.build}


def _version(package: LockedFile | None, other: LockedFile | None) -> str | None:
    """Return the version of `package`, with its file where `other` has the same version."""
    if package is None:
        return None
    if other is None or other.version != package.version:
        return package.version
    return f"{package.version} ({package.file})"


def table(changes: Sequence[Change]) -> str:
    """Return `changes` as aligned lines: group, package, old, new, bytes to download; and their sum."""
    rows = [("", "package", "old", "new", "download")]
    rows += [(c.group, c.package, c.old or "-", c.new or "-", size(c.download) if c.new else "-") for c in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = sum(change.download for change in changes)
    return "\n".join([*lines, f"{len(changes)} changes, {size(total)} to download"])
