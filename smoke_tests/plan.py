"""The plan: which checks and controls run in which process group, in what order, and what each continues with. Data only."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from smoke_tests import runtime
from smoke_tests.checks import (
    RankContext,
    TrainingState,
    baseline,
    collectives,
    generation,
    installed,
    loading,
    memory,
    mixed_modality,
    precision,
    saving,
    synthetic,
    training,
)
from smoke_tests.controls import fixed_upstream, injected
from smoke_tests.outcome import Outcome
from smokehouse_loader import Failure
from smokehouse_loader.failures import BY_NAME

Check = Callable[[RankContext, TrainingState], Outcome]


@dataclass(frozen=True)
class Step:
    """One function that every rank of a job runs. Steps of one name and stage make up one check.

    A step begins with an empty `TrainingState`, unless it continues another step of its job: `model_of` and `engine_of` give
    the name of the step that built the model or the engine it needs. `builds` is what it leaves for others to continue with.
    `needs` are the names whose files or outcomes it reads, in the same stage or without one.
    """

    name: str
    run: Check
    kind: str = "check"
    model_of: str = ""
    engine_of: str = ""
    builds: str = ""  # model | engine
    needs: tuple[str, ...] = ()
    staged: bool = True
    dtype: torch.dtype | None = None
    hf_config: bool = True  # under a live HfDeepSpeedConfig
    workaround: bool = True  # of the gloo race
    may_end: bool = False  # ranks may die or hang in it without ending the run: how they do is the outcome
    failure: Failure | None = None  # the known failure that it is about

    @property
    def continues(self) -> bool:
        """Whether it begins with what another step built."""
        return bool(self.model_of or self.engine_of)

    @property
    def by_version(self) -> bool:
        """Whether its outcome is expected only of versions that it was measured with."""
        return self.kind == "control" or self.failure is not None or self.run is loading.auto_classes


@dataclass(frozen=True)
class Job:
    """One process group: `processes` ranks under torchrun's agent, or one process alone, running `steps` in order.

    `after` lists what must have finished first: a job, or a `job/step`.
    """

    name: str
    steps: tuple[Step, ...]
    stage: int | None = None
    processes: int = 1
    distributed: bool = False
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a step that continues with what no step before it built, or has dropped since. Raises ValueError."""
        builder = {"model": "", "engine": ""}
        for step in self.steps:
            for part, name in (("model", step.model_of), ("engine", step.engine_of)):
                if name and builder[part] != name:
                    found = f"that of {builder[part]!r}" if builder[part] else "none"
                    raise ValueError(f"{self.name} / {step.name}: expected the {part} of {name!r}, found {found}; fix the plan")
            if not step.continues:
                builder = {"model": "", "engine": ""}
            if step.builds == "engine":
                builder = {"model": builder["model"] or step.name, "engine": step.name}
            elif step.builds == "model":
                builder = {"model": step.name, "engine": ""}


def _control(
    name: str, run: Check, failure: str, *, workaround: bool = True, hf_config: bool = True, may_end: bool = False
) -> Step:
    """Return the control that injects the known failure of that name."""
    return Step(
        name,
        run,
        kind="control",
        dtype=torch.float32,
        hf_config=hf_config,
        workaround=workaround,
        may_end=may_end,
        failure=BY_NAME[failure],
    )


def _fixed(name: str, run: Check, failure: str, *, workaround: bool = True) -> Step:
    """Return the check that takes a control's place where upstream fixed the known failure of that name."""
    return Step(name, run, dtype=torch.float32, failure=BY_NAME[failure], workaround=workaround)


def _main_steps() -> list[Step]:
    return [
        Step("versions", installed.versions),
        Step("collectives", collectives.collectives),
        Step("load", loading.load, builds="model"),
        Step("weights", loading.weights, model_of="load"),
        Step("generate", generation.generate, model_of="load", builds="engine", needs=("plain run",)),
        Step("train", training.train, engine_of="generate", needs=("plain run",)),
        Step("resume", saving.save, engine_of="generate", needs=("train",)),
        Step("train", training.train_on, engine_of="generate"),
        Step("memory", memory.memory, model_of="load", engine_of="generate"),
    ]


def _fresh_steps(device: str) -> list[Step]:
    """Return the steps that run in processes which have not saved what they load."""
    dummy = Step("mixed modality: dummy image", mixed_modality.dummy_image, builds="engine", needs=("plain run",))
    steps = [dummy, Step("resume", saving.resume, engine_of=dummy.name)]
    if runtime.PRECISION[device] != "bf16":  # otherwise it is the main precision already
        steps.append(Step("bf16", precision.bf16, dtype=torch.bfloat16))
    return steps


def _control_steps(stage: int, processes: int, device: str, expectations: dict[str, Any]) -> list[Step]:
    steps = [
        _control("missing key", injected.missing_key, "missing-key"),
        _control("later key layout", injected.later_key_layout, "key-layout")
        if expectations["later_key_layout"] == "random"
        else _fixed("both key layouts", fixed_upstream.both_key_layouts, "key-layout"),
        _control("flipped bit", injected.flipped_bit, "wrong-bits"),
        _control("truncated shard", injected.truncated_shard, "truncated-shard"),
    ]
    if stage == 3:
        if processes > 1 and runtime.backend(device) == "gloo":
            steps.append(
                _control("gloo race", injected.gloo_race, "gloo-race", workaround=False)
                if expectations["gloo_race"] == "present"
                else _fixed("late gathers", fixed_upstream.late_gathers, "gloo-race", workaround=False)
            )
        seed = "partitioned-before-load"
        steps += [
            _control("seed failure: load_state_dict", injected.seed_failure_load_state_dict, seed),
            _control("seed failure: zero.Init", injected.seed_failure_zero_init, seed, hf_config=False),
        ]
    # Last: under ZeRO-3 it leaves the other ranks without their peer.
    steps.append(_control("wrong shape", injected.wrong_shape, "wrong-shape", may_end=stage == 3))
    return steps


def _stage_jobs(stage: int, processes: int, device: str, expectations: dict[str, Any]) -> list[Job]:
    name = f"zero{stage}"
    # On a GPU the plain run must have left the memory first.
    start = "plain" if device == "cuda" else "plain/checkpoint"
    main = Job(name, tuple(_main_steps()), stage, processes, distributed=True, after=(start,))
    fresh = _fresh_steps(device)
    last = f"{name}-fresh/{fresh[-1].name}"
    if processes > 1:
        known = BY_NAME["mixed-modality"]
        fresh.append(Step("mixed modality", mixed_modality.text_only_ranks, may_end=True, failure=known, needs=("plain run",)))
    controls = tuple(_control_steps(stage, processes, device, expectations))
    # From the engine checkpoint that `resume` saves, and the 16-bit weights of the bf16 run or, in bf16, of `resume`.
    written_by = ("resume", *(step.name for step in fresh if step.name == "bf16"))
    consolidated = Step("consolidated weights", saving.consolidated, hf_config=False, needs=written_by)
    return [
        main,
        dataclasses.replace(main, name=f"{name}-fresh", steps=tuple(fresh), after=("plain", name)),
        dataclasses.replace(main, name=f"{name}-controls", steps=controls),
        Job(f"{name}-consolidated", (consolidated,), stage, after=(last,)),
    ]


def jobs(stages: tuple[int, ...], processes: int, device: str, expectations: dict[str, Any]) -> list[Job]:
    """Return all jobs of a run, in the order in which they should start where nothing holds them back.

    `expectations`, those of stack.toml, say for each failure whether this stack has it, and a control injects it, or it is
    fixed, and a check proves that.
    """
    plain = Job(
        "plain",
        (
            Step("checkpoint", synthetic.write_checkpoints, staged=False),
            Step("plain run", baseline.plain_run, staged=False, hf_config=False),
            Step("auto classes", loading.auto_classes, staged=False, hf_config=False),
        ),
    )
    planned = [plain]
    # ZeRO-3 first: its chain of jobs is the longest.
    staged = [_stage_jobs(stage, processes, device, expectations) for stage in sorted(stages, reverse=True)]
    for group in zip(*staged, strict=True):
        planned += group
    return planned
