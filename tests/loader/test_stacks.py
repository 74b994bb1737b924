"""Run tests/loader/inside on every stack, in one process with one import each."""

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

# Seconds; a stack takes 60 on an idle machine, and 450 were measured on two cores that twenty processes wanted.
DEADLINE = 1800.0


@dataclass(frozen=True)
class Outcome:
    """The results of the tests inside a stack, by name; `failures` has the outcome of each known failure."""

    passed: frozenset[str]
    not_passed: dict[str, str]
    failures: dict[str, str]


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """Stack -> outcome; filled by test_stack."""
    return {}


def run(stack: str, root: Path, folder: Path) -> Outcome:
    """Run all tests inside `stack`."""
    report, notes = folder / "report.xml", folder / "failures.jsonl"
    tools = sysconfig.get_path("purelib")
    command = [stacks.python(stack), root / "tests/loader/inside/run.py", root / "src", tools, f"--junitxml={report}"]
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    environ = {name: value for name, value in os.environ.items() if name not in foreign}
    environ |= {"FAILURE_OUTCOMES": str(notes), "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=environ, capture_output=True, text=True, errors="replace", timeout=DEADLINE
    )
    if not report.exists():
        pytest.fail(f"pytest inside {stack} ended with {ended.returncode}:\n{ended.stdout[-5000:]}\n{ended.stderr[-5000:]}")
    passed, not_passed = set(), {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if len(case):
            not_passed[name] = "\n".join(f"{part.tag}: {part.get('message')}\n{(part.text or '')[-3000:]}" for part in case)
        else:
            passed.add(name)
    noted = dict(json.loads(line) for line in notes.read_text().splitlines()) if notes.exists() else {}
    return Outcome(frozenset(passed), not_passed, noted)


@pytest.mark.parametrize("stack", stacks.STACKS)
def test_stack(stack: str, root: Path, tmp_path: Path, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[stack] = run(stack, root, tmp_path)
    listed = "\n\n".join(f"--- {name}\n{text}" for name, text in outcome.not_passed.items())
    # Skipped tests count as not passed.
    assert not listed, f"{len(outcome.not_passed)} tests inside {stack} did not pass, {len(outcome.passed)} did:\n{listed}"
    assert len(outcome.passed) > 80


def test_every_failure_is_reproduced_on_some_stack(outcomes: dict[str, Outcome]) -> None:
    if missing := set(stacks.STACKS) - outcomes.keys():
        pytest.fail(f"no outcome of {sorted(missing)}; run this with test_stack")
    failures = {
        one.name: {stack: outcome.failures.get(one.name) for stack, outcome in outcomes.items()}
        for one in FAILURES
        if one.reproduction
    }
    assert not {name: by_stack for name, by_stack in failures.items() if "reproduced" not in by_stack.values()}
    assert not {name: by_stack for name, by_stack in failures.items() if None in by_stack.values()}


def test_locks_are_up_to_date() -> None:
    checkout = stacks.HERE
    names = sorted(name for owner, name in stacks.STACKS.values() if owner is checkout)
    assert checkout.locks() == checkout.environments() == names
    assert lock_all.check_all(checkout, checkout.environments()) == 0


def test_tools_are_where_stacks_look_for_them() -> None:
    """pytest and hypothesis are in the directory that the tests inside a stack get them from."""
    assert Path(pytest.__file__).is_relative_to(sysconfig.get_path("purelib"))
    assert sys.version_info[:2] == (3, 11)
