"""Making and checking all locks of a checkout."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from smokehouse import console
from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environment
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks import check, pins, tools
from smokehouse.locks import draft as lock
from smokehouse.locks import model as manifest
from smokehouse.locks.draft import Draft
from smokehouse.locks.pins import LockFiles


def make(
    checkout: Checkout,
    names: Sequence[str],
    *,
    channel: str | None = None,
    upgrade: str | None = None,
    dry: bool = False,
    as_json: bool = False,
) -> int:
    """Lock the environments `names`, or all, and print what changed; with `dry`, write nothing. Returns 0; raises UserError."""
    from smokehouse.locks import diff as changes

    questions = list(_questions(checkout, names))  # all of them are read before the first is resolved
    rows = []
    for asked, place in questions:
        if console.is_terminal():
            console.status(f"resolving {asked.name}")
        drafted = lock.draft(asked, place, channel, upgrade)
        found = changes.between(_old(place), drafted.manifest) if drafted.manifest else []
        new = drafted.new
        if not dry:
            drafted.write()
        rows.append(_row(asked.name, drafted, new, [asdict(change) for change in found]))
        if not as_json:
            _tell(checkout.relative(place.pins.parent), drafted, new, dry)
            if found:
                print(changes.table(found))
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def make_tools(checkout: Checkout) -> int:
    """Lock the builder's own tools; returns 0 or raises UserError."""
    place = tools.lock(checkout)
    drafted = lock.draft_tools(tools.read(checkout), place)
    new = drafted.new
    drafted.write()
    _tell(place.name, drafted, new, dry=False)
    return 0


def check_all(checkout: Checkout, names: Sequence[str], *, only_tools: bool = False, as_json: bool = False) -> int:
    """Print how each lock is not what is asked for; returns 1 if one is not, else 0. Needs no network."""
    problems = []
    for asked, place in () if only_tools else _questions(checkout, names):
        try:
            check.check_environment(asked, place)
        except UserError as problem:
            problems.append(str(problem))
    if not names:
        try:
            check.check(tools.read(checkout), tools.lock(checkout))
        except UserError as problem:
            problems.append(str(problem))
    if not names and not only_tools:
        strays = sorted({*checkout.locks()} - {*checkout.environments()})
        problems += [f"lockfiles/{name}: there is no environment of this name; remove the folder" for name in strays]
    if as_json:
        print(json.dumps({"problems": problems}, indent=1))
    else:
        for line in problems:
            console.status(line)
    return 1 if problems else 0


def _questions(checkout: Checkout, names: Sequence[str]) -> Iterable[tuple[Environment, LockFiles]]:
    for name in names or checkout.environments():
        yield environment.read(checkout, name), pins.environment_lock(checkout, name)


def _old(place: LockFiles) -> manifest.Manifest | None:
    """Return the manifest as it lies there, whatever else of the lock was edited; None where there is none to compare with."""
    try:
        return manifest.Manifest.model_validate_json(place.manifest.read_bytes()) if place.manifest else None
    except (OSError, ValueError):
        return None


def _row(name: str, drafted: Draft, new: bool, found: list[dict[str, Any]]) -> dict[str, Any]:
    download = drafted.manifest.download if drafted.manifest else 0
    return {"environment": name, "changed": new, "packages": drafted.packages, "download": download, "changes": found}


def _tell(name: str, drafted: Draft, new: bool, dry: bool) -> None:
    what = "unchanged" if not new else "would change" if dry else "written"
    print(f"{name}: {drafted.packages} packages, {what}")
