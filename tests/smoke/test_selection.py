"""--only and --skip: what is requested runs with all that it needs, and the report says that it is partial."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_tests.options import InputError, read
from smoke_tests.selection import DEFAULT, NAMES, Selection, canonical

from .conftest import NAME, Starter

# In a process that has torch: for each plan and name, the jobs that --only NAME leaves, as (name, after, steps, needs).
SELECTIONS = """
import itertools, json
from smoke_tests import families, legs, plan, selection

kinds = {bool(families.get(name).denoiser): name for name in families.names()} | {False: families.DEFAULT}
found, planned = [], set()
promises = [dict(zip(("gloo_race", "later_key_layout"), one)) for one in (("present", "random"), ("fixed", "whole"))]
chosen_legs = [("cpu", legs.choose("cpu", 0, None, ranks)) for ranks in (1, 2)]
chosen_legs += [("cpu", (legs.choose("cpu", 0, None, ranks)[0].over(2),)) for ranks in (1, 2)]
chosen_legs += [("cuda", legs.choose("cuda", gpus, None, None)) for gpus in (1, 2)]
for family, stages, (device, chosen), expectations in itertools.product(
    kinds.values(), [(2,), (3,), (2, 3)], chosen_legs, promises
):
    jobs = [*plan.make(stages, chosen, device, expectations, family).jobs]
    names = selection.names_in(jobs)
    planned |= set(names)
    assert selection.select(jobs, names) == jobs
    for name in names:
        chosen = selection.select(jobs, [name])  # a Job refuses a step whose model or engine no step before it built
        found.append([name, [[job.name, job.after, [[s.name, s.needs] for s in job.steps]] for job in chosen]])
print(json.dumps({"planned": sorted(planned), "found": found}))
"""


@pytest.fixture(scope="module")
def selections(lasting: Starter) -> dict[str, Any]:
    """Return the names of all plans, and what each alone leaves of each plan."""
    found: dict[str, Any] = json.loads(lasting.inside("-c", SELECTIONS))
    return found


def test_every_planned_name_can_be_chosen(selections: dict[str, Any]) -> None:
    assert selections["planned"] == sorted(NAMES)


def test_what_is_chosen_has_all_that_it_needs_and_waits_for_what_runs(lasting: Starter, selections: dict[str, Any]) -> None:
    assert len(selections["found"]) > 300
    for name, jobs in selections["found"]:
        steps = {step for _, _, of_job in jobs for step, _ in of_job}
        places = {job for job, _, _ in jobs} | {f"{job}/{step}" for job, _, of_job in jobs for step, _ in of_job}
        assert {"parity": "train"}.get(name, name) in steps
        assert "checkpoint" in steps
        for job, after, of_job in jobs:
            assert of_job, f"{name}: {job} has no steps"
            assert set(after) <= places, f"{name}: {job} waits for {after}"
            for step, needs in of_job:
                assert set(needs) <= steps, f"{name}: {step} needs {needs}"


def test_what_nothing_needs_does_not_run(selections: dict[str, Any]) -> None:
    jobs = next(jobs for name, jobs in selections["found"] if name == "versions")
    assert [[job, [step for step, _ in steps]] for job, _, steps in jobs] == [
        ["plain", ["checkpoint"]],
        ["zero2", ["versions"]],
    ]


@given(st.sampled_from(NAMES), st.sampled_from(["-", "_", " ", ": "]), st.booleans())
def test_a_name_is_known_in_any_spelling(name: str, separator: str, upper: bool) -> None:
    spelt = re.sub(r"[^a-zA-Z0-9]+", separator, name)
    assert canonical(spelt.upper() if upper else spelt) == name


def test_requested_names() -> None:
    assert Selection().requested(NAMES, "cpu") == [*DEFAULT]
    assert Selection().requested(NAMES, "cuda") == [*DEFAULT, "kernels", "overlap_comm"]
    assert Selection(extra=True).requested(NAMES, "cpu") == [*NAMES]
    assert Selection(skip=("load",)).requested(["versions", "load"], "cpu") == ["versions"]
    assert Selection(only=("load", "weights"), skip=("load",)).requested(["versions", "weights", "load"], "cpu") == ["weights"]


@pytest.mark.parametrize("option", ["--only", "--skip"])
@pytest.mark.parametrize("unknown", ["nothing-such", "", "load,,weights"])
def test_unknown_name_is_refused_with_the_list(root: Path, option: str, unknown: str) -> None:
    stack, lock = root / "environments" / NAME / "stack.toml", root / "lockfiles" / NAME
    required = ["--environment", NAME, "--stack", str(stack), "--lock", str(lock)]
    with pytest.raises(InputError) as raised:
        read([*required, option, unknown])
    said = str(raised.value)
    assert f"argument {option}: expected names of " in said
    assert all(name in said for name in NAMES)
    assert len(said.splitlines()) == 1


def test_partial_run(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", "--only", "Weights,missing-key", "--skip", "load")
    assert ended.code == 0, ended.stderr
    assert "smoke: not skipped, since others need it: load\n" in ended.stdout
    assert [(c["name"], c["verdict"]) for c in ended.report["checks"]] == [
        (name, "passed") for name in ("checkpoint", "load", "weights", "missing key")
    ]
    missing = ended.report["not_requested"]
    assert {"plain run", "train", "parity", "resume", "flipped bit", "versions"} < set(missing)
    assert not {"load", "gloo race"} & set(missing)  # one runs, the other is not in a run of ZeRO-2
    assert f"not requested: {', '.join(missing)}\n" in ended.stdout
    assert re.search(rf"^PASSED \(partial\)  {re.escape(NAME)}: on cpu, gloo, fp32, 2 ranks$", ended.stdout, re.MULTILINE)


def test_nothing_left_to_run(smoke: Starter) -> None:
    said = smoke.refused("--zero", "2", "--only", "gloo race")
    assert said == (
        "smoke: expected a check that runs on cpu, gloo with 2 ranks under ZeRO-2, found none in gloo race; choose other names"
    )
