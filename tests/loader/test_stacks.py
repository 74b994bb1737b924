"""Runs tests/loader/inside on every stack: one process and one import each."""

import json
import os
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

from smokehouse.locks import lock_all
from smokehouse_loader.failures import FAILURES
from tests.loader import stacks

# Seconds; a stack takes 60, on a machine that is busy with something else more.
DEADLINE = 600.0


@dataclass(frozen=True)
class Seen:
    """What the tests inside a stack came to, by their names; `failures` has what became of each known failure."""

    passed: frozenset[str]
    troubles: dict[str, str]
    failures: dict[str, str]


@pytest.fixture(scope="session")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """What each stack came to; filled as the tests go."""
    return {}


def run(stack: str, root: Path, folder: Path) -> Seen:
    """Run all tests inside `stack`."""
    report, notes = folder / "report.xml", folder / "failures.jsonl"
    tools = sysconfig.get_path("purelib")
    command = [stacks.python(stack), root / "tests/loader/inside/run.py", root / "src", tools, f"--junitxml={report}"]
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    environ = {name: value for name, value in os.environ.items() if name not in foreign}
    environ |= {"FAILURES_SEEN": str(notes), "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=environ, capture_output=True, text=True, errors="replace", timeout=DEADLINE
    )
    if not report.exists():
        pytest.fail(f"pytest inside {stack} ended with {ended.returncode}:\n{ended.stdout[-5000:]}\n{ended.stderr[-5000:]}")
    passed, troubles = set(), {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if len(case):
            troubles[name] = "\n".join(f"{part.tag}: {part.get('message')}\n{(part.text or '')[-3000:]}" for part in case)
        else:
            passed.add(name)
    noted = dict(json.loads(line) for line in notes.read_text().splitlines()) if notes.exists() else {}
    return Seen(frozenset(passed), troubles, noted)


@pytest.mark.parametrize("stack", stacks.STACKS)
def test_stack(stack: str, root: Path, tmp_path: Path, seen: dict[str, Seen]) -> None:
    seen[stack] = run(stack, root, tmp_path)
    troubles = seen[stack].troubles  # what was skipped is one
    listed = "\n\n".join(f"--- {name}\n{text}" for name, text in troubles.items())
    assert not troubles, f"{len(troubles)} tests inside {stack} did not pass, {len(seen[stack].passed)} did:\n{listed}"
    assert len(seen[stack].passed) > 80


def test_every_failure_is_reproduced_somewhere(seen: dict[str, Seen]) -> None:
    if missing := set(stacks.STACKS) - seen.keys():
        pytest.fail(f"run it with test_stack: nothing is known of {sorted(missing)}")
    outcomes = {failure.name: {stack: one.failures.get(failure.name) for stack, one in seen.items()} for failure in FAILURES}
    assert not {name: by_stack for name, by_stack in outcomes.items() if "reproduced" not in by_stack.values()}
    assert not {name: by_stack for name, by_stack in outcomes.items() if None in by_stack.values()}


def test_locks_are_what_is_asked_for() -> None:
    checkout = stacks.HERE
    assert (
        checkout.locks()
        == checkout.environments()
        == sorted(name for owner, name in stacks.STACKS.values() if owner is checkout)
    )
    assert lock_all.check_all(checkout, checkout.environments()) == 0


def test_the_tools_are_these(root: Path) -> None:
    """pytest and hypothesis are found where the tests inside a stack look for them."""
    assert Path(pytest.__file__).is_relative_to(sysconfig.get_path("purelib"))
    assert sys.version_info[:2] == (3, 11)
