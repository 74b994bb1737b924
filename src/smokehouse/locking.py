"""Making and checking all locks of a house."""

import sys
from collections.abc import Iterable, Sequence

from smokehouse import environment, lock, tools
from smokehouse.errors import UserError
from smokehouse.house import House
from smokehouse.inputs import Inputs


def make(house: House, names: Sequence[str], only_tools: bool) -> int:
    """Lock the environments `names`, or all, or the tools instead; returns 0 or raises UserError."""
    questions = [(tools.read(house), tools.lock(house))] if only_tools else list(_questions(house, names))
    for inputs, place in questions:
        if sys.stderr.isatty():
            print(f"smokehouse: resolving {place.name}", file=sys.stderr)
        changed = lock.make(inputs, place)
        packages = len(lock.read(place).versions)
        print(f"{place.name}: {packages} packages, {'written' if changed else 'unchanged'}")
    return 0


def check(house: House, names: Sequence[str], only_tools: bool) -> int:
    """Print how each lock is not what is asked for; returns 1 if one is not, else 0. Needs no network."""
    problems = []
    if not only_tools:
        for inputs, place in _questions(house, names):
            problems += _problem(inputs, place)
    if not names:
        problems += _problem(tools.read(house), tools.lock(house))
    if not names and not only_tools:
        for name in sorted({*house.locks()} - {*house.environments()}):
            problems.append(f"lockfiles/{name}: there is no environment of this name; remove the folder")
    for problem in problems:
        print(f"smokehouse: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _questions(house: House, names: Sequence[str]) -> Iterable[tuple[Inputs, lock.LockFiles]]:
    for name in names or house.environments():
        yield environment.read(house, name).inputs, lock.environment_lock(house, name)


def _problem(inputs: Inputs, place: lock.LockFiles) -> list[str]:
    try:
        lock.check(inputs, place)
    except UserError as problem:
        return [str(problem)]
    return []
