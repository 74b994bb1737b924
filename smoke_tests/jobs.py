"""The plan: which checks and controls run in which process group, and in what order."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from smokehouse_loader import Failure, inspect_checkpoint, zero
from smokehouse_loader.failures import BY_NAME

from . import checks, controls, fixes, stack
from .checks import Bench
from .fixtures import damage, samples, tiny_checkpoint
from .outcome import Outcome, passed
from .workspace import Workspace


@dataclass(frozen=True)
class Step:
    """One function that every rank of a job runs. Steps of one name and stage make up one check."""

    name: str
    run: Callable[[Bench], Outcome]
    kind: str = "check"
    staged: bool = True
    dtype: torch.dtype | None = None
    hf_config: bool = True  # under a live HfDeepSpeedConfig
    workaround: bool = True
    fresh: bool = False  # begins without the model and engine of the step before
    may_end: bool = False  # ranks may die or hang in it without ending the run: the finding is how
    failure: Failure | None = None  # the known failure that it is about


@dataclass(frozen=True)
class Job:
    """One process group: `processes` ranks under torchrun's agent, or one process alone, running `steps` in order."""

    name: str
    steps: tuple[Step, ...]
    stage: int | None = None
    processes: int = 1
    distributed: bool = False
    after: tuple[str, ...] = ()


def make_checkpoints(bench: Bench) -> Outcome:
    """Make the made checkpoint, and the damaged ones; the family's description fits the model."""
    tiny_checkpoint.write(bench.made, bench.family, samples.corpus())
    if problems := bench.family.problems(tiny_checkpoint.model_shapes(bench.made, bench.family)):
        raise ValueError("; ".join(problems))  # ends the run: nothing that comes after could be believed
    damage.write_damaged(Workspace(bench.work), bench.family)
    return passed(f"{inspect_checkpoint(bench.made).elements:,} parameters, {len(damage.DAMAGES)} damaged ones")


def _control(name: str, run: Callable[[Bench], Outcome], failure: str, **options: bool) -> Step:
    """The control `run`, which does the known failure of that name."""
    return Step(name, run, kind="control", dtype=torch.float32, fresh=True, failure=BY_NAME[failure], **options)


def _fix(name: str, run: Callable[[Bench], Outcome], failure: str, *, workaround: bool = True) -> Step:
    """The check that takes a control's place where upstream has mended the known failure of that name."""
    return Step(name, run, dtype=torch.float32, fresh=True, failure=BY_NAME[failure], workaround=workaround)


def _stage_jobs(stage: int, processes: int, device: str, expectations: dict[str, Any]) -> list[Job]:
    """The jobs of one ZeRO stage."""
    name = f"zero{stage}"
    # On a GPU the plain run must have left the memory first.
    start = "plain" if device == "cuda" else "plain/checkpoint"

    def ranks(suffix: str, steps: list[Step], *after: str) -> Job:
        return Job(name + suffix, tuple(steps), stage, processes, distributed=True, after=after)

    main = [
        Step("versions", checks.versions),
        Step("collectives", checks.collectives),
        Step("load", checks.load),
        Step("weights", checks.weights),
        Step("generate", checks.generate),
        Step("train", checks.train),
        Step("resume", checks.save),
        Step("train", checks.train_on),
        Step("memory", checks.memory),
    ]
    fresh = [
        Step("mixed modality: dummy image", checks.mixed_modality_cure),
        Step("resume", checks.resume),  # with the engine and the gradients of the step before
    ]
    if stack.PRECISION[device] != "bf16":  # otherwise it is the main precision already
        fresh.append(Step("bf16", checks.half_precision, dtype=torch.bfloat16, fresh=True))
    wrong = [
        _control("missing key", controls.missing_key, "missing-key"),
        _control("later key layout", controls.later_key_layout, "key-layout")
        if expectations["later_key_layout"] == "random"
        else _fix("both key layouts", fixes.both_key_layouts, "key-layout"),
        _control("flipped bit", controls.flipped_bit, "wrong-bits"),
        _control("truncated shard", controls.truncated_shard, "truncated-shard"),
    ]
    if stage == 3:
        if processes > 1 and stack.backend(device) == "gloo":
            wrong.append(
                _control("gloo race", controls.gloo_race, "gloo-race", workaround=False)
                if expectations["gloo_race"] == "present"
                else _fix("late gathers", fixes.late_gathers, "gloo-race", workaround=False)
            )
        wrong += [
            _control("seed failure: load_state_dict", controls.seed_failure_load_state_dict, "partitioned-before-load"),
            _control("seed failure: zero.Init", controls.seed_failure_zero_init, "partitioned-before-load", hf_config=False),
        ]
    # Last: under ZeRO-3 it leaves the other ranks without their peer.
    wrong.append(_control("wrong shape", controls.wrong_shape, "wrong-shape", may_end=stage == 3))
    consolidated = Step("consolidated weights", checks.consolidated, hf_config=False)

    last = f"{name}-fresh/{fresh[-1].name}"
    if processes > 1:
        known = BY_NAME["mixed-modality"]
        fresh.append(Step("mixed modality", checks.mixed_modality, fresh=True, may_end=True, failure=known))
    return [
        ranks("", main, start),
        ranks("-fresh", fresh, "plain", name),
        ranks("-controls", wrong, start),
        Job(f"{name}-consolidated", (consolidated,), stage, after=(last,)),
    ]


def plan(stages: tuple[int, ...], processes: int, device: str, expectations: dict[str, Any]) -> list[Job]:
    """All jobs of a run, in the order in which they should start where nothing holds them back.

    `expectations`, stack.toml's, say what is a control on this stack and what a check that it is fixed.
    """
    first = Job(
        "plain",
        (
            Step("checkpoint", make_checkpoints, staged=False),
            Step("plain run", checks.plain, staged=False, hf_config=False),
            Step("auto classes", checks.auto_classes, staged=False, hf_config=False, fresh=True),
        ),
    )
    jobs = [first]
    # ZeRO-3 first: its chain of jobs is the longest.
    staged = [_stage_jobs(stage, processes, device, expectations) for stage in sorted(stages, reverse=True)]
    for group in zip(*staged, strict=True):
        jobs += group
    return jobs


@contextlib.contextmanager
def surroundings(step: Step, bench: Bench):
    """What a step runs under: the workaround for the gloo race and a live `HfDeepSpeedConfig`, where it wants them."""
    with contextlib.ExitStack() as around:
        if bench.stage is not None:
            if step.workaround:
                around.enter_context(zero.safe_gathers())
            if step.hf_config:
                around.enter_context(checks.transformers_zero(bench.config()))
        yield
