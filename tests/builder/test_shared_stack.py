"""Environments that share a stack and a cut-off resolve to the same versions of all that they share."""

import itertools
from collections import defaultdict
from pathlib import Path

from smokehouse import environment, lock
from smokehouse.house import House

CORE = ("torch", "transformers", "deepspeed")


def test_shared_stack_is_one(root: Path) -> None:
    house = House(root)
    alike = defaultdict(list)
    for name in house.environments():
        promise = environment.read(house, name)
        versions = lock.read(lock.environment_lock(house, name)).versions
        alike[promise.stack.packages.cutoff, *(versions[package] for package in CORE)].append((name, versions))
    pairs = [pair for group in alike.values() for pair in itertools.combinations(group, 2)]
    assert pairs
    exceptions = [
        f"{package}: {one[package]} in {first}, {other[package]} in {second}"
        for (first, one), (second, other) in pairs
        for package in one.keys() & other.keys()
        if one[package] != other[package]
    ]
    assert exceptions == []
