"""What a new lock changes, as a person wants to read it."""

from collections.abc import Sequence
from dataclasses import dataclass

from smokehouse.console import size
from smokehouse.locks.model import Lock, LockedFile


@dataclass(frozen=True)
class Change:
    """One package that comes, goes or moves. `old` and `new` are versions, `download` is in bytes."""

    half: str
    package: str
    old: str | None
    new: str | None
    download: int


def between(old: Lock | None, new: Lock) -> list[Change]:
    """Return how the artefacts of `new` differ from those of `old`, sorted by half and name."""
    found = []
    for half in ("conda", "pip", "build"):
        before = {package.name: package for package in (getattr(old, half) if old else ())}
        after = {package.name: package for package in getattr(new, half)}
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if not (was and now and was.sha256 == now.sha256):
                found.append(Change(half, name, _version(was, now), _version(now, was), now.size if now else 0))
    return found


def _version(package: LockedFile | None, other: LockedFile | None) -> str | None:
    """Return the version of `package`, with what tells it from `other` where that is not the version."""
    if package is None:
        return None
    if other is None or other.version != package.version:
        return package.version
    return f"{package.version} ({package.file})"


def table(changes: Sequence[Change]) -> str:
    """Return `changes` as aligned lines: half, package, old, new, bytes to download; and their sum."""
    rows = [("", "package", "old", "new", "download")]
    rows += [(c.half, c.package, c.old or "-", c.new or "-", size(c.download) if c.new else "-") for c in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = sum(change.download for change in changes)
    return "\n".join([*lines, f"{len(changes)} changes, {size(total)} to download"])
