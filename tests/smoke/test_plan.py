"""The plan: a step continues only with what a step before it in its job built and left."""

import json

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

jobs = plan.jobs((2, 3), 2, "cpu", {"gloo_race": "present", "later_key_layout": "random"})
print(json.dumps({job.name: [[s.name, s.model_of, s.engine_of] for s in job.steps if s.continues] for job in jobs}))
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
        assert continued[f"zero{stage}-fresh"] == [["resume", "", "mixed modality: dummy image"]]
        assert continued[f"zero{stage}-controls"] == continued[f"zero{stage}-consolidated"] == []
    assert continued["plain"] == []
