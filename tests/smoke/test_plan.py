"""The plan: a step continues only with what a step before it in its job built and left."""

import json
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import families, legs
from smoke_tests.options import InputError

from .conftest import Starter

# In a process that has torch: each job is a list of (name, model_of, engine_of, builds), and the answer is its error or "".
JOBS = """
import json, sys
from smoke_tests.plan import Job, Step

def refusal(steps):
    try:
        Job("zero3", tuple(Step(name, None, model_of=m, engine_of=e, builds=b) for name, m, e, b in steps))
    except ValueError as error:
        return str(error)
    return ""

print(json.dumps([refusal(steps) for steps in json.loads(sys.argv[1])]))
"""
ORDER = """
import json
from smoke_tests import plan

from smoke_tests.legs import Leg

made = plan.make((2, 3), (Leg("gloo", 2),), "cpu", {"gloo_race": "present", "later_key_layout": "random"})
print(json.dumps({job.name: [[s.name, s.model_of, s.engine_of] for s in job.steps if s.continues] for job in made.jobs}))
"""
LEGS = """
import json, sys
from smoke_tests import legs, plan

chosen = legs.choose(*json.loads(sys.argv[1]))
made = plan.make((2, 3), chosen, sys.argv[2], {"gloo_race": "fixed", "later_key_layout": "whole"})
jobs = {job.name: {"leg": job.leg.name, "ranks": job.processes, "after": job.after, "folder": job.folder,
                   "steps": [step.name for step in job.steps]} for job in made.jobs}
print(json.dumps([jobs, [[entry.name, entry.reason, entry.leg and entry.leg.name] for entry in made.not_run]]))
"""
LEFT_OUT = """
import json
from smoke_tests import families, legs, plan

expectations = {"gloo_race": "fixed", "later_key_layout": "whole"}
made = {name: plan.make((2, 3), legs.choose("cpu", 0, None, 2), "cpu", expectations, name) for name in families.names()}
print(json.dumps({
    name: [[step.name for job in one.jobs for step in job.steps], {entry.name: entry.reason for entry in one.not_run}]
    for name, one in made.items()
}))
"""
OVER_NODES = """
import json
from smoke_tests import plan
from smoke_tests.legs import Leg

found = {}
for ranks in (1, 2):
    made = plan.make((2, 3), (Leg("gloo", ranks * 3, 0, 3),), "cpu", {"gloo_race": "fixed", "later_key_layout": "whole"})
    jobs = {job.name: [job.processes, job.nodes, job.after] for job in made.jobs}
    found[ranks] = [jobs, {entry.name: entry.reason for entry in made.not_run}]
print(json.dumps(found))
"""
AFTER = """
import json
from smoke_tests.plan import Job, Plan, Step

def refusal(after):
    try:
        Plan((Job("early", (Step("load", None),)), Job("late", (), after=after)), ())
    except ValueError as error:
        return str(error)
    return ""

print(json.dumps([refusal(("early", "early/load")), refusal(("early/other",))]))
"""

LOAD = ("load", "", "", "model")
START = ("start", "load", "", "engine")
TRAIN = ("train", "", "start", "")
OTHER = ("other", "", "", "")


def test_step_continues_only_with_what_is_left_for_it(lasting: Starter) -> None:
    jobs = {
        (): "",
        (LOAD, START, TRAIN, TRAIN): "",
        (OTHER, LOAD, START, TRAIN, OTHER): "",
        (TRAIN,): "zero3 / train: expected the engine of 'start', found none; fix the plan",
        (START,): "zero3 / start: expected the model of 'load', found none; fix the plan",
        # A step that builds a model builds no engine.
        (LOAD, ("train", "", "load", "")): "zero3 / train: expected the engine of 'load', found none; fix the plan",
        (LOAD, START, LOAD, TRAIN): "zero3 / train: expected the engine of 'start', found none; fix the plan",
        # A step that continues nothing begins with an empty state, also where it builds nothing.
        (LOAD, START, OTHER, TRAIN): "zero3 / train: expected the engine of 'start', found none; fix the plan",
        (LOAD, START, ("again", "", "", "engine"), TRAIN): (
            "zero3 / train: expected the engine of 'start', found that of 'again'; fix the plan"
        ),
    }
    assert json.loads(lasting.inside("-c", JOBS, json.dumps(list(jobs)))) == list(jobs.values())


def test_plan_says_what_each_step_continues_with(lasting: Starter) -> None:
    main = [
        ["weights", "load", ""],
        ["generate", "load", ""],
        ["train", "", "generate"],
        ["resume", "", "generate"],
        ["train", "", "generate"],
        ["memory", "load", "generate"],
    ]
    continued = json.loads(lasting.inside("-c", ORDER))
    for stage in (2, 3):
        assert continued[f"zero{stage}"] == main
        assert continued[f"zero{stage}-fresh"] == [
            ["resume", "", "mixed modality: dummy image"],
            ["mixed modality", "", "mixed modality"],  # its engine is loaded before ranks may hang in it
        ]
        assert continued[f"zero{stage}-controls"] == continued[f"zero{stage}-consolidated"] == []
    assert continued["plain"] == []


def test_job_comes_only_after_what_is_planned(lasting: Starter) -> None:
    assert json.loads(lasting.inside("-c", AFTER)) == [
        "",
        "late: expected to come after a job or step of the plan, found 'early/other'; fix it",
    ]


# legs

NEEDS_SEVERAL = {"collectives", "memory", "overlap_comm", "mixed modality", "mixed modality: dummy image"}
NEEDS_SEVERAL |= {"ZeRO-1 in place of ZeRO-2", "no ZeRO"}
NEEDS_SEVERAL_IN_PART = {"load", "generate", "train", "resume", "consolidated weights"}


def planned(starter: Starter, device: str, *chosen: object) -> tuple[dict[str, Any], list[list[str | None]]]:
    """Return the jobs of a plan by name, and what it does not show, for these arguments of `legs.choose`."""
    jobs, not_run = json.loads(starter.inside("-c", LEGS, json.dumps(chosen), device))
    return jobs, not_run


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (("cpu", 0, None, None), [("gloo x2", 0)]),
        (("cpu", 0, None, 1), [("gloo x1", 0)]),
        (("cpu", 0, "gloo", 3), [("gloo x3", 0)]),
        (("cuda", 1, None, None), [("nccl x1", 1), ("gloo x2", 1)]),
        (("cuda", 1, None, 1), [("nccl x1", 1)]),
        (("cuda", 1, "nccl", None), [("nccl x1", 1)]),
        (("cuda", 1, "gloo", None), [("gloo x2", 1)]),
        (("cuda", 2, "gloo", None), [("gloo x2", 2)]),
        (("cuda", 2, "gloo", 4), [("gloo x4", 2)]),
        (("cuda", 2, None, None), [("nccl x2", 2)]),
        (("cuda", 16, None, None), [("nccl x8", 8)]),
        (("cuda", 8, None, 1), [("nccl x1", 1)]),
    ],
)
def test_legs_of_a_machine(arguments: tuple[Any, ...], chosen: list[tuple[str, int]]) -> None:
    assert [(leg.name, leg.gpus) for leg in legs.choose(*arguments)] == chosen


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (
            ("cpu", 0, "nccl", None),
            "--backend nccl: requires GPUs, found --device cpu; give --backend gloo or --device cuda",
        ),
        (
            ("cuda", 1, None, 2),
            "--nproc 2: NCCL requires one GPU a rank, found 1; give --nproc 1 or less, or --backend gloo, "
            "with which ranks share GPUs",
        ),
    ],
)
def test_legs_that_a_machine_lacks(arguments: tuple[Any, ...], refusal: str) -> None:
    with pytest.raises(InputError) as caught:
        legs.choose(*arguments)
    assert str(caught.value) == refusal


def test_one_rank_plans_nothing_that_it_cannot_show(lasting: Starter) -> None:
    jobs, not_run = planned(lasting, "cpu", "cpu", 0, None, 1)
    steps = {step for job in jobs.values() for step in job["steps"]}
    assert not steps & (NEEDS_SEVERAL | {"late gathers"})
    assert steps >= NEEDS_SEVERAL_IN_PART
    said = {name for name, _, leg in not_run if leg == "gloo x1"}
    assert said == NEEDS_SEVERAL | NEEDS_SEVERAL_IN_PART | {"late gathers"}
    # An engine that resumes has to come from somewhere else than the check that is left out.
    assert jobs["zero3-fresh"]["steps"][:2] == ["resume", "resume"]


def test_two_ranks_show_all(lasting: Starter) -> None:
    jobs, not_run = planned(lasting, "cpu", "cpu", 0, None, 2)
    assert {step for job in jobs.values() for step in job["steps"]} >= NEEDS_SEVERAL | NEEDS_SEVERAL_IN_PART
    assert [leg for _, _, leg in not_run] == [None, None]


def test_over_nodes_one_goes_on_alone_and_each_has_a_copy_if_it_has_ranks_for_it(lasting: Starter) -> None:
    found = json.loads(lasting.inside("-c", OVER_NODES))
    for ranks in (1, 2):
        jobs, not_run = found[str(ranks)]
        for stage in (2, 3):
            assert jobs[f"zero{stage}-universal"] == [1, 0, [f"zero{stage}"]]
            assert jobs[f"zero{stage}-universal-resume"] == [ranks, 1, [f"zero{stage}-universal"]]
        assert ("zero3-hpz" in jobs) is (ranks == 2)
        assert not_run.get("hpZ") == (None if ranks == 2 else "requires several ranks on each node")
    assert found["2"][0]["zero3-hpz"] == [6, 0, ["plain"]]


def test_what_a_family_cannot_be_asked_is_left_out_with_the_reason(lasting: Starter) -> None:
    mixed = {"mixed modality", "mixed modality: dummy image"}
    frozen = "frozen vision tower"
    for name, (steps, not_run) in json.loads(lasting.inside("-c", LEFT_OUT)).items():
        family = families.get(name)
        if family.denoiser:  # has reasons of its own
            continue
        absent = set() if family.mixes_modalities else mixed if family.vision else mixed | {frozen}
        reason = "the family's encoder takes no sample without a picture" if family.vision else "the family has no vision tower"
        assert {one for one in (*mixed, frozen) if one not in steps} == absent, name
        assert {one: why for one, why in not_run.items() if one in (*mixed, frozen)} == dict.fromkeys(absent, reason), name
        # An engine that resumes has to come from somewhere else than the check that is left out.
        assert steps.count("resume") == 2 * (2 if family.mixes_modalities else 3), name


def test_one_gpu_runs_nccl_alone_and_gloo_shared(lasting: Starter) -> None:
    jobs, not_run = planned(lasting, "cuda", "cuda", 1, None, None)
    first = {name: job for name, job in jobs.items() if not name.startswith("gloo-")}
    second = {name: job for name, job in jobs.items() if name.startswith("gloo-")}
    assert {job["leg"] for job in first.values()} == {"nccl x1"}
    assert {job["leg"] for job in second.values()} == {"gloo x2"}
    several = {f"gloo-zero{stage}-overlap" for stage in (2, 3)}
    assert {f"gloo-{name}" for name in first} == ({*second} - several) | {"gloo-kernels"}
    assert several < {*second}
    assert {job["folder"] for job in first.values()} == {""}
    assert {job["folder"] for job in second.values()} == {"gloo"}
    # The synthetic checkpoint is written once, and what runs without ranks is not repeated.
    assert second["gloo-plain"]["steps"] == ["plain run"]
    assert second["gloo-plain"]["after"] == ["plain"]
    assert second["gloo-zero3-fresh"]["after"] == ["gloo-plain", "gloo-zero3"]
    assert "collectives" not in first["zero3"]["steps"]
    assert "collectives" in second["gloo-zero3"]["steps"]
    assert (first["zero3"]["ranks"], second["gloo-zero3"]["ranks"], second["gloo-zero3-consolidated"]["ranks"]) == (1, 2, 1)
    said = {(name, leg) for name, _, leg in not_run}
    assert ("collectives", "nccl x1") in said
    assert ("control: gloo race", None) in said
    assert not [name for name, leg in said if leg == "gloo x2"]


GPU = """
import json, os, torch
from smoke_tests import runtime

chosen = []
torch.cuda.device_count, torch.cuda.set_device = lambda: 8, chosen.append  # as with MIG: cards, of which there is one slice
for rank in range(4):
    os.environ["LOCAL_RANK"] = str(rank)
    runtime.choose_gpu(2)
    chosen.append(os.environ["LOCAL_RANK"])
print(json.dumps(chosen))
"""


def test_ranks_share_gpus_in_turn(lasting: Starter) -> None:
    """DeepSpeed takes LOCAL_RANK for the number of the GPU."""
    assert json.loads(lasting.inside("-c", GPU)) == [0, "0", 1, "1", 0, "0", 1, "1"]


def test_job_of_one_process_has_one_rank(lasting: Starter) -> None:
    jobs, _ = planned(lasting, "cpu", "cpu", 0, None, 2)
    assert {name: job["ranks"] for name, job in jobs.items()} == {
        name: 1 if name in ("plain", "plain-extra", "ops", "kernels") or name.endswith("consolidated") else 2 for name in jobs
    }


IMPORTS = """
import json, os, sys
from smoke_tests import runtime

os.environ.update(json.loads(sys.argv[1]))
runtime.choose_accelerator("cpu")
runtime.import_deepspeed("cpu")
import deepspeed

place = {"init_method": f"file://{sys.argv[2]}", "rank": 0, "world_size": 1}
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, **place)
before = {*sys.modules}
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
import torch

is_zero_supported_optimizer(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))
print(json.dumps([sorted({*sys.modules} - before), os.environ.get("TORCHDYNAMO_DISABLE")]))
"""


@pytest.mark.parametrize("given", [{}, {"TORCHDYNAMO_DISABLE": "0"}])
def test_first_engine_imports_no_compiler(latest: Starter, given: dict[str, str], tmp_path: Path) -> None:
    """DeepSpeed would import torch's in every rank, for a second each; what the user said of torch.compile stays."""
    imported, left = json.loads(latest.inside("-c", IMPORTS, json.dumps(given), str(tmp_path / "store")).splitlines()[-1])
    assert not [name for name in imported if name.startswith(("torch._inductor", "torch._functorch", "networkx"))]
    assert left == given.get("TORCHDYNAMO_DISABLE")
