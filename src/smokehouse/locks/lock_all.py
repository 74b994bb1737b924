"""Lock environments, and report which locks are out of date."""

import json
from collections.abc import Iterable, Sequence, Set
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from smokehouse import console
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.environments import definition
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks import check, pins, tools, undeclared
from smokehouse.locks.model import Lock
from smokehouse.locks.pins import LockFiles
from smokehouse.locks.writing import writing
from smokehouse.storage import strict_json

if TYPE_CHECKING:  # checking a lock imports no solver
    from smokehouse.locks.draft import Draft

# Indexes and mirrors list some files only days after their upload time. Measured: 10 of 115 packages, 8 days after the
# cut-off of a lock.
SETTLED = timedelta(days=14)


def lock_all(
    checkout: Checkout,
    names: Sequence[str],
    *,
    channel: str | None = None,
    upgrade: str | None = None,
    dry: bool = False,
    unsettled: bool = False,
    as_json: bool = False,
) -> int:
    """Lock the environments `names`, or all, and print what changed; with `dry`, write nothing. Returns 0; raises UserError.

    A cut-off later than `SETTLED` before today is refused unless `unsettled`, which the lock then records.
    """
    if not dry:
        checkout.require_own("lock")
        if packaged := sorted({*names} & {*checkout.environments()} - {*checkout.own_environments()}):
            raise UserError(
                f"{packaged[0]}: expected an environment of {checkout.root}, found one of the installed package, which is not "
                f"changed; copy {checkout.environment(packaged[0])} to {checkout.root / 'environments'} first"
            )
    environments = list(_environments(checkout, names))  # so that all are valid before the first is resolved
    young = {environment.name for environment, _ in environments if not is_settled(environment.inputs.cutoff)}
    if not unsettled:
        for environment, _ in environments:
            _require_settled(environment.inputs.cutoff, f"environments/{environment.name}/stack.toml")
    _resolve(checkout, environments, young, channel=channel, upgrade=upgrade, dry=dry, as_json=as_json)
    return 0


def drift(checkout: Checkout, names: Sequence[str], *, channel: str | None = None, as_json: bool = False) -> int:
    """Resolve the environments `names`, or all, again and print how locks would change; write nothing.

    Returns 1 if one would change, else 0; raises UserError, also where a lock is out of date.
    """
    _require_any(checkout, names)
    environments = list(_environments(checkout, names))
    unsettled = {
        environment.name for environment, files in environments if check.check_environment(environment, files).unsettled
    }
    return int(_resolve(checkout, environments, unsettled, channel=channel, dry=True, as_json=as_json))


def _resolve(
    checkout: Checkout,
    environments: Sequence[tuple[Environment, LockFiles]],
    unsettled: Set[str],
    *,
    channel: str | None,
    upgrade: str | None = None,
    dry: bool,
    as_json: bool,
) -> bool:
    """Resolve `environments`, write their locks unless `dry`, print what changed, and return whether anything did.

    The locks of environments in `unsettled` record that their cut-off was not settled.
    """
    from smokehouse.locks import diff
    from smokehouse.locks.draft import draft

    rows = []
    for environment, files in _with_platforms(environments):
        if console.is_terminal():
            status(f"resolving {environment.name} for {environment.inputs.platform}")
        with nullcontext() if dry else writing(checkout, environment.name):
            drafted = draft(environment, files, channel, upgrade, settled=environment.name not in unsettled)
            changes = diff.between(_old(files), drafted.lock) if drafted.lock else []
            changed = drafted.changed
            if not dry:
                drafted.write()
        rows.append(_row(environment, drafted, changed, [change.as_json() for change in changes]))
        if not as_json:
            _report(files.name, drafted, changed, dry)
            if changes:
                print(diff.table(changes))
    if as_json:
        print(json.dumps(rows, indent=1))
    return any(row["changed"] for row in rows)


def is_settled(cutoff: date) -> bool:
    """Return whether an index is expected to list no further files from before the end of `cutoff`."""
    return cutoff <= datetime.now(UTC).date() - SETTLED


def _require_settled(cutoff: date, name: str) -> None:
    if not is_settled(cutoff):
        latest = datetime.now(UTC).date() - SETTLED
        raise UserError(
            f"{name}: expected a cutoff of {latest} or earlier, found {cutoff}: an index adds files for {SETTLED.days} days; "
            f"use an earlier cutoff, or --unsettled"
        )


def lock_tools(checkout: Checkout, *, unsettled: bool = False) -> int:
    """Lock the builder's own tools; returns 0 or raises UserError."""
    from smokehouse.locks.draft import draft_tools

    checkout.require_own("lock --tools")
    file, inputs = tools.pin_file(checkout), tools.read(checkout)
    if not unsettled:
        _require_settled(inputs.cutoff, "pyproject.toml: tools-cutoff")
    with writing(checkout, file.name):
        drafted = draft_tools(inputs, file)
        changed = drafted.changed
        drafted.write()
    _report(file.name, drafted, changed, dry=False)
    return 0


def check_all(
    checkout: Checkout, names: Sequence[str], *, only_tools: bool = False, as_json: bool = False, others: Sequence[str] = ()
) -> int:
    """Print which locks are out of date and why; returns 1 if one is, else 0. Uses no network.

    `others` are the problems of locks that are not of environments. Raises UserError where there is nothing to check.
    """
    problems: list[str] = [*others]
    if only_tools and not checkout.has_tools:
        raise UserError(f"--tools: expected {checkout.relative(checkout.tools_lock())}, found none; run it in a checkout")
    _require_any(checkout, () if only_tools else names, only_tools=only_tools)
    for environment, files in () if only_tools else _environments(checkout, names):
        try:
            undeclared.check(environment.name, check.check_environment(environment, files).pip)
        except UserError as problem:
            problems.extend(problem.mistakes)
    if not names and checkout.has_tools:
        file = tools.pin_file(checkout)
        try:
            check.check_pins(tools.read(checkout), file, pins.read(file))
        except UserError as problem:
            problems.append(str(problem))
    if not names and not only_tools:
        strays = sorted({*checkout.locks()} - {*checkout.environments()})
        problems += [f"lockfiles/{name}: environment not found; remove the folder" for name in strays]
    if as_json:
        print(json.dumps({"problems": problems}, indent=1))
    else:
        for line in problems:
            status(line)
    return 1 if problems else 0


def _require_any(checkout: Checkout, names: Sequence[str], *, only_tools: bool = False) -> None:
    """Raise UserError where there is no environment, so that nothing would be compared."""
    if not (only_tools or names or checkout.own_environments()):
        raise UserError(f"{checkout.root / 'environments'}: expected an environment, found none; add one, or name one")


def _environments(checkout: Checkout, names: Sequence[str]) -> Iterable[tuple[Environment, LockFiles]]:
    for name in names or checkout.own_environments():
        yield definition.read(checkout, name), LockFiles.of(checkout, name)


def _with_platforms(environments: Sequence[tuple[Environment, LockFiles]]) -> Iterable[tuple[Environment, LockFiles]]:
    """Yield each environment, and the same for its further platforms."""
    for environment, files in environments:
        yield environment, files
        for other in environment.others:
            yield other, files.on(other.stack.packages.platform)


def _old(files: LockFiles) -> Lock | None:
    """Return the lock on disk, without verifying the files beside it; None where lock.json is missing or invalid."""
    try:
        return Lock.model_validate(strict_json.parse(files.lock_json.read_bytes()))
    except (OSError, ValueError):
        return None


def _row(environment: Environment, drafted: "Draft", changed: bool, changes: list[dict[str, Any]]) -> dict[str, Any]:
    download = drafted.lock.download if drafted.lock else 0
    names = {"environment": environment.name, "platform": environment.inputs.platform}
    return {**names, "changed": changed, "packages": drafted.packages, "download": download, "changes": changes}


def _report(name: str, drafted: "Draft", changed: bool, dry: bool) -> None:
    result = "unchanged" if not changed else "would change" if dry else "written"
    print(f"{name}: {drafted.packages} packages, {result}")
