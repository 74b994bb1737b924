"""The plan: which checks and controls run in which process group, in what order, and what each continues with. Data only.

It is made without torch: a check is imported when it runs. A run has one or several legs (`smoke_tests.legs`), which repeat
the jobs with another backend or world size. What one rank shows of a check, and what it does not, is data of its step: what
shows nothing is not planned, and reported as not run.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smoke_tests import families, legs, needs
from smoke_tests.families import Family
from smoke_tests.legs import Leg
from smoke_tests.machine import software
from smoke_tests.outcome import Outcome
from smokehouse_loader import Failure
from smokehouse_loader.failures import BY_NAME

if TYPE_CHECKING:
    from smoke_tests.checks import (
        RankContext,
        TrainingState,
        adapters,
        attention,
        baseline,
        collectives,
        denoising,
        generation,
        hierarchical,
        installed,
        kernels,
        liger,
        loading,
        memory,
        mixed_modality,
        nodes,
        offload,
        overlap,
        precision,
        saving,
        sizes,
        synthetic,
        throughput,
        trainer,
        training,
        universal,
    )
    from smoke_tests.controls import fixed_upstream, injected
else:  # imported when a check runs
    from smoke_tests.deferred import (
        adapters,
        attention,
        baseline,
        collectives,
        denoising,
        fixed_upstream,
        generation,
        hierarchical,
        injected,
        installed,
        kernels,
        liger,
        loading,
        memory,
        mixed_modality,
        nodes,
        offload,
        overlap,
        precision,
        saving,
        sizes,
        synthetic,
        throughput,
        trainer,
        training,
        universal,
    )

ALONE = Leg("gloo", 1)
NODES = "nodes"  # the job that compares nodes
Check = Callable[["RankContext", "TrainingState"], Outcome]


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
    precision: str = ""  # fp32 | bf16; empty for that of the run
    hf_config: bool = True  # under a live HfDeepSpeedConfig
    workaround: bool = True  # of the gloo race
    may_end: bool = False  # ranks may die or hang in it without ending the run: how they do is the outcome
    witness: int | None = None  # of the ranks that may end, the one that has to report an outcome of its own
    failure: Failure | None = None  # the known failure that it is about
    of_leg: bool = True  # its outcome depends on the leg; the others run once
    ranks: int = 1  # the fewest at which it shows anything; it is not planned with less
    unproven_alone: str = ""  # what it does not show with one rank, whether it runs or not
    deadline: float = 0.0  # seconds that it may take, whatever the model, where the user sets no --timeout

    @property
    def continues(self) -> bool:
        """Whether it begins with what another step built."""
        return bool(self.model_of or self.engine_of)

    @property
    def may_show_known_issue(self) -> bool:
        """Whether a known issue of the stack can be its outcome."""
        return self.may_end and self.kind == "check"

    @property
    def by_version(self) -> bool:
        """Whether its outcome is expected only of versions that it was measured with."""
        return self.kind == "control" or self.failure is not None or self.run == loading.auto_classes


@dataclass(frozen=True)
class Job:
    """One process group: all ranks of its leg under torchrun's agent, or one process alone, running `steps` in order.

    `after` lists what must have finished first: a job, or a `job/step`. `folder` is the leg's in the workspace. `nodes` is how
    many of the leg's nodes it runs on, the first ones, 0 for all of them.
    """

    name: str
    steps: tuple[Step, ...]
    stage: int | None = None
    leg: Leg = ALONE
    distributed: bool = False
    after: tuple[str, ...] = ()
    folder: str = ""
    nodes: int = 0

    @property
    def processes(self) -> int:
        """The number of its ranks."""
        ranks = self.leg.world_size // self.leg.nodes * self.nodes if self.nodes else self.leg.world_size
        return ranks if self.distributed else 1

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
        precision="fp32",
        hf_config=hf_config,
        workaround=workaround,
        may_end=may_end,
        failure=BY_NAME[failure],
    )


def _other_stage(name: str, run: Check) -> Step:
    """Return a control that trains with another ZeRO stage: a mistake in a configuration, no failure of the stack."""
    alone = "one rank's share is everything"
    return Step(name, run, kind="control", precision="fp32", hf_config=False, ranks=2, unproven_alone=alone)


def _fixed(name: str, run: Check, failure: str, *, workaround: bool = True) -> Step:
    """Return the check that takes a control's place where upstream fixed the known failure of that name."""
    return Step(name, run, precision="fp32", failure=BY_NAME[failure], workaround=workaround)


def _main_steps(family: Family) -> list[Step]:
    undivided = "one rank's partition of a parameter is all of it"
    loads, loaded = (denoising.load, "") if family.denoiser else (loading.load, undivided)
    engine = (
        Step("initialize", denoising.initialize, model_of="load", builds="engine", unproven_alone=undivided)
        if family.denoiser
        else Step(
            *("generate", generation.generate),
            model_of="load",
            builds="engine",
            needs=("plain run",),
            unproven_alone="one rank gathers no parameters from others",
        )
    )
    steps = [
        Step("versions", installed.versions),
        Step("collectives", collectives.collectives, ranks=2, unproven_alone="one rank exchanges nothing"),
        Step("load", loads, builds="model", unproven_alone=loaded),
        Step("weights", loading.weights, model_of="load"),
        engine,
        Step(
            *("train", training.train),
            engine_of=engine.name,
            needs=("plain run",),
            unproven_alone="one rank reduces no gradients, also for parity",
        ),
        Step("resume", saving.save, engine_of=engine.name, needs=("train",)),
        Step("train", training.train_on, engine_of=engine.name),
        Step(
            *("memory", memory.memory),
            model_of="load",
            engine_of=engine.name,
            needs=("train",),
            ranks=2,
            unproven_alone="one rank's share is everything",
        ),
    ]
    if family.denoiser:
        alone = "one rank gathers nothing to save"
        steps.append(Step("save_model", denoising.save, engine_of=engine.name, needs=("train",), unproven_alone=alone))
    return steps


def _fresh_steps(device: str, processes: int, family: Family) -> list[Step]:
    """Return the steps that run in processes which have not saved what they load."""
    dummy = Step(
        *("mixed modality: dummy image", mixed_modality.dummy_image),
        builds="engine",
        needs=("plain run",),
        ranks=2,
        unproven_alone="requires a rank with text only",
    )
    # The engine that resumes is the one of the check before, where that is planned.
    start = (
        dummy if family.mixes_modalities and processes >= dummy.ranks else Step("resume", saving.start_anew, builds="engine")
    )
    resumed = "one rank's engine checkpoint has one partition"
    steps = [start, Step("resume", saving.resume, engine_of=start.name, unproven_alone=resumed)]
    if family.mixes_modalities and start is not dummy:
        steps.append(dummy)
    if family.denoiser:
        steps.append(Step("load_model", denoising.load_model_by_parts, unproven_alone="one rank's partition is all of it"))
    if legs.PRECISION[device] != "bf16":  # otherwise it is the main precision already
        steps.append(Step("bf16", precision.bf16, precision="bf16"))
    return steps


def _control_steps(stage: int, leg: Leg, device: str, expectations: dict[str, Any], family: Family) -> list[Step]:
    steps = [_control("missing key", injected.missing_key, "missing-key")]
    if family.layouts:
        steps.append(
            _control("later key layout", injected.later_key_layout, "key-layout")
            if expectations["later_key_layout"] == "random"
            else _fixed("both key layouts", fixed_upstream.both_key_layouts, "key-layout")
        )
    steps += [
        _control("flipped bit", injected.flipped_bit, "wrong-bits"),
        _control("truncated shard", injected.truncated_shard, "truncated-shard"),
    ]
    if stage == 3:
        # On a GPU gloo copies each tensor to the host first: nobody has measured whether the race can be lost there.
        if leg.backend == "gloo" and device == "cpu" and family.gathers_pairs and not family.denoiser:
            race = (
                _control("gloo race", injected.gloo_race, "gloo-race", workaround=False)
                if expectations["gloo_race"] == "present"
                else _fixed("late gathers", fixed_upstream.late_gathers, "gloo-race", workaround=False)
            )
            steps.append(dataclasses.replace(race, ranks=2, unproven_alone="one rank gathers nothing"))
        seed = "partitioned-before-load"
        steps.append(_control("seed failure: load_state_dict", injected.seed_failure_load_state_dict, seed))
        if family.denoiser:
            inside = injected.denoiser_inside_zero_init
            steps += [
                _control("denoiser inside zero.Init", inside, "denoiser-inside-zero-init", hf_config=False),
                _control("saved partitioned", injected.saved_partitioned, "saved-partitioned"),
            ]
        else:
            steps.append(_control("seed failure: zero.Init", injected.seed_failure_zero_init, seed, hf_config=False))
    else:
        steps += [
            _other_stage("ZeRO-1 in place of ZeRO-2", injected.zero1_in_place_of_zero2),
            _other_stage("no ZeRO", injected.no_zero),
        ]
    # Last: where loading partitions, it leaves the other ranks without their peer.
    shape = _control("wrong shape", injected.wrong_shape, "wrong-shape", may_end=stage == 3 and not family.denoiser)
    # Rank 0 reads the file: only what it raises shows that the shape was detected.
    steps.append(dataclasses.replace(shape, witness=0))
    return steps


def _stage_jobs(stage: int, leg: Leg, device: str, expectations: dict[str, Any], family: Family) -> list[Job]:
    name = f"zero{stage}"
    # On a GPU the plain run must have left the memory first.
    start = "plain" if device == "cuda" else "plain/checkpoint"
    main = Job(name, tuple(_main_steps(family)), stage, leg, distributed=True, after=(start,))
    fresh = _fresh_steps(device, leg.world_size, family)
    last = f"{name}-fresh/{[step for step in fresh if step.ranks <= leg.world_size][-1].name}"
    mixed = Step(
        *("mixed modality", mixed_modality.start_engine),
        builds="engine",
        failure=BY_NAME["mixed-modality"],
        needs=("plain run",),
        ranks=2,
        unproven_alone="requires a rank with text only",
    )
    # Loading is a step of its own, with the usual deadline: that of a large checkpoint must not pass for a hang.
    if family.mixes_modalities:
        hanging = dataclasses.replace(mixed, run=mixed_modality.text_only_ranks, builds="", engine_of=mixed.name, may_end=True)
        fresh += [mixed, hanging]
    controls = tuple(_control_steps(stage, leg, device, expectations, family))
    # From the engine checkpoint that `resume` saves, and the 16-bit weights of the bf16 run or, in bf16, of `resume`.
    consolidated = Step(
        *("consolidated weights", saving.consolidated),
        hf_config=False,
        needs=("resume", *(step.name for step in fresh if step.name == "bf16")),
        unproven_alone="one rank's weights need not be joined",
    )
    return [
        main,
        dataclasses.replace(main, name=f"{name}-fresh", steps=tuple(fresh), after=("plain", name)),
        dataclasses.replace(main, name=f"{name}-controls", steps=controls),
        Job(f"{name}-consolidated", (consolidated,), stage, leg, after=(last,)),
    ]


def _can_offload(device: str) -> bool:
    return software.ahead_of_time("cpu_adam") or _compiles_ops(device)


def _compiles_ops(device: str) -> bool:
    """Whether the run compiles DeepSpeed's ops for the CPU."""
    return device == "cpu" and not software.ahead_of_time("cpu_adam") and not software.missing_for_ops()


def _extra_alone(leg: Leg, device: str, family: Family) -> list[Job]:
    """Return the jobs of one process that only --all has: references for the ranks, attention, and ops to compile."""
    steps = (
        Step("trainer: plain run", trainer.plain_run, staged=False, hf_config=False),
        Step("real sizes: plain run", sizes.plain_run, staged=False, hf_config=False),
        Step("attention", attention.attention, staged=False, hf_config=False, of_leg=False),
    )
    planned = [] if family.denoiser else [Job("plain-extra", steps, leg=leg, after=("plain",))]
    if _compiles_ops(device):
        # Two steps of one check, as each has a deadline of its own. First cpu_adam, which more depends on.
        ops = [
            Step("cpu ops", run, staged=False, hf_config=False, of_leg=False, deadline=needs.COMPILATION)
            for run in (offload.compile_cpu_adam, offload.compile_fused_adam)
        ]
        planned.append(Job("ops", tuple(ops), leg=leg, after=("plain",)))
    return planned


def _extra_staged(stage: int, leg: Leg, device: str, without_liger: str, family: Family) -> list[Job]:
    """Return a stage's jobs that only --all has: what users train with."""
    name, ops = f"zero{stage}", ("cpu ops",) if _compiles_ops(device) else ()
    overlapping = Step("overlap_comm", overlap.overlap_comm, ranks=2, unproven_alone="one rank reduces no gradients")
    offloaded = Step("offload", offload.offload, hf_config=False, needs=("plain run", *ops))
    if family.denoiser:
        extra = (offloaded,) if _can_offload(device) else ()
        return [
            Job(f"{name}-overlap", (overlapping,), stage, leg, distributed=True, after=(name,)),
            Job(f"{name}-extra", extra, stage, leg, distributed=True, after=("ops" if ops else "plain",)),
        ]
    steps = [Step("real sizes", sizes.real_sizes, needs=("real sizes: plain run",))]
    if family.vision:
        steps.append(Step("frozen vision tower", adapters.frozen_vision))
    if importlib.util.find_spec("peft"):
        steps.append(Step("LoRA", adapters.lora))
    if _can_offload(device):
        steps.append(offloaded)
    if device == "cuda":
        steps.append(Step("throughput", throughput.throughput))
        if not without_liger:
            steps.append(Step("liger", liger.liger))
    after = ("plain-extra", *(("ops",) if ops else ()))
    trained = Step("trainer", trainer.train, hf_config=False, needs=("trainer: plain run", *ops))
    resumed = dataclasses.replace(trained, run=trainer.resume)
    return [
        Job(f"{name}-overlap", (overlapping,), stage, leg, distributed=True, after=(name,)),
        Job(f"{name}-extra", tuple(steps), stage, leg, distributed=True, after=after),
        Job(f"{name}-trainer", (trained,), stage, leg, distributed=True, after=after),
        Job(f"{name}-trainer-resume", (resumed,), stage, leg, distributed=True, after=(f"{name}-trainer",)),
    ]


def _plain_job(leg: Leg, family: Family) -> Job:
    steps = [
        Step("checkpoint", synthetic.write_checkpoints, staged=False, of_leg=False),
        Step("plain run", baseline.plain_run, staged=False, hf_config=False),
    ]
    if not family.denoiser:
        steps.append(Step("auto classes", loading.auto_classes, staged=False, hf_config=False, of_leg=False))
    return Job("plain", tuple(steps), leg=leg)


def _nodes_job(leg: Leg) -> Job:
    """Return the job of a run over nodes that sees whether they fit together."""
    steps = (
        Step("nodes", nodes.nodes, staged=False, hf_config=False, ranks=2),
        Step("network", nodes.network, staged=False, hf_config=False, ranks=2),
    )
    return Job(NODES, steps, leg=leg, distributed=True)


def _over_nodes(stages: tuple[int, ...], leg: Leg) -> list[Job]:
    """Return the jobs that only a run over nodes has: a copy of the weights on each, and going on with one node alone."""
    planned = []
    if 3 in stages and leg.world_size > leg.nodes:
        copied = Step("hpZ", hierarchical.hpz, hf_config=False, needs=("plain run",))
        planned.append(Job("zero3-hpz", (copied,), 3, leg, distributed=True, after=("plain",)))
    for stage in stages:
        converted = Step("universal checkpoint: conversion", universal.convert, hf_config=False, needs=("resume", "train"))
        resumed = Step("universal checkpoint", universal.resume, hf_config=False, needs=(converted.name,))
        name = f"zero{stage}-universal"
        planned.append(Job(name, (converted,), stage, leg, after=(f"zero{stage}",)))
        planned.append(Job(f"{name}-resume", (resumed,), stage, leg, distributed=True, after=(name,), nodes=1))
    return planned


def _leg_jobs(
    stages: tuple[int, ...], leg: Leg, device: str, expectations: dict[str, Any], without_liger: str, family: Family
) -> list[Job]:
    """Return all jobs of a leg, whether one rank shows anything or not."""
    # ZeRO-3 first: its chain of jobs is the longest.
    staged = [_stage_jobs(stage, leg, device, expectations, family) for stage in sorted(stages, reverse=True)]
    planned = [_plain_job(leg, family)]
    if not family.denoiser:
        compared = Step("kernels", kernels.kernels, staged=False, hf_config=False, of_leg=False)
        planned.append(Job("kernels", (compared,), leg=leg))
    planned += [_nodes_job(leg)] if leg.nodes > 1 else []
    planned += [*(job for group in zip(*staged, strict=True) for job in group), *_extra_alone(leg, device, family)]
    for stage in sorted(stages, reverse=True):
        planned += _extra_staged(stage, leg, device, without_liger, family)
    return planned + (_over_nodes(stages, leg) if leg.nodes > 1 else [])


def _later(jobs: list[Job]) -> list[Job]:
    """Return the jobs of a leg that is not the first: in a folder of their own, and without what a run does once."""
    done = {job.name for job in jobs if not any(step.of_leg for step in job.steps)}
    done |= {f"{job.name}/{step.name}" for job in jobs for step in job.steps if not step.of_leg}
    return [
        dataclasses.replace(
            job,
            name=f"{job.leg.backend}-{job.name}",
            steps=tuple(step for step in job.steps if step.of_leg),
            after=tuple(name if name in done else f"{job.leg.backend}-{name}" for name in job.after) or ("plain",),
            folder=job.leg.backend,
        )
        for job in jobs
        if job.name not in done
    ]


@dataclass(frozen=True)
class NotRun:
    """A check, or a part of one, that the run does not show; `leg` is None where that is so of all."""

    name: str
    reason: str
    leg: Leg | None = None


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, in the order in which they should start where nothing holds them back, and what it does not show."""

    jobs: tuple[Job, ...]
    not_run: tuple[NotRun, ...]

    def __post_init__(self) -> None:
        """Refuse a job that comes after what nobody does: it would wait for ever. Raises ValueError."""
        known = {job.name for job in self.jobs} | {f"{job.name}/{step.name}" for job in self.jobs for step in job.steps}
        for job in self.jobs:
            for earlier in job.after:
                if earlier not in known:
                    raise ValueError(f"{job.name}: expected to come after a job or step of the plan, found {earlier!r}; fix it")


def make(
    stages: tuple[int, ...],
    legs: tuple[Leg, ...],
    device: str,
    expectations: dict[str, Any],
    family: str = families.DEFAULT,
    *,
    apply_liger: bool = False,
) -> Plan:
    """Plan a run on `legs` for a model `family`, whose name is the model type that packages have kernels for.

    What is about pictures is left out for a text-only family, and what mixes them with text for one that takes no text.

    With `apply_liger`, liger's kernels are planned on GPUs only where they can be applied, which takes seconds to find out.

    `expectations`, those of stack.toml, say for each failure whether this stack has it, and a control injects it, or it is
    fixed, and a check proves that.
    """
    described = families.get(family)
    jobs: list[Job] = []
    unproven: list[NotRun] = []
    without_liger = software.no_liger(family) if device == "cuda" else ""
    if device == "cuda" and apply_liger and not without_liger:
        without_liger = liger.problem_when_applied(family)  # a function, not a check: it imports torch
    for number, leg in enumerate(legs):
        whole = _leg_jobs(stages, leg, device, expectations, without_liger, described)
        alone = [step for job in whole for step in job.steps if leg.world_size == 1 and step.unproven_alone]
        unproven += [NotRun(step.name, f"{step.unproven_alone} ({leg.name})", leg) for step in alone]
        kept = [
            dataclasses.replace(job, steps=tuple(step for step in job.steps if step.ranks <= leg.world_size)) for job in whole
        ]
        kept = [job for job in kept if job.steps]
        jobs += _later(kept) if number else kept
    names = {step.name for job in jobs for step in job.steps}
    return Plan(tuple(jobs), (*dict.fromkeys(unproven), *_left_out(names, stages, without_liger, described)))


# What a denoiser cannot show -> why.
_TOKENS = "a denoiser reads no tokens"
_OF_TRANSFORMERS = "checks a model of transformers"
_WITHOUT_TOKENS = {
    "auto classes": "diffusers finds the class by its name in config.json",
    "generate": "a denoiser is one step of its pipeline's loop",
    "mixed modality: dummy image": _TOKENS,
    "mixed modality": _TOKENS,
    "control: seed failure: zero.Init": "the control 'denoiser inside zero.Init' takes its place",
    "kernels": _OF_TRANSFORMERS,
    "trainer": _OF_TRANSFORMERS,
    "real sizes": _OF_TRANSFORMERS,
    "attention": _OF_TRANSFORMERS,
    "LoRA": _OF_TRANSFORMERS,
    "frozen vision tower": "the family has no vision tower",
    "throughput": "counts tokens",
}


def _left_out(names: set[str], stages: tuple[int, ...], without_liger: str, family: Family) -> list[NotRun]:
    """Return what this device, stack and family cannot show, given the names of all planned steps."""
    missing = [NotRun(name, reason) for name, reason in family.absent]
    missing += [NotRun(name, reason) for name, reason in _WITHOUT_TOKENS.items()] if family.denoiser else []
    mixed = ("mixed modality: dummy image", "mixed modality")
    if not family.vision and not family.denoiser:
        missing += [NotRun(name, "the family has no vision tower") for name in (*mixed, "frozen vision tower")]
    elif family.vision and not family.mixes_modalities:
        missing += [NotRun(name, "the family's encoder takes no sample without a picture") for name in mixed]
    if not family.layouts:
        missing.append(NotRun("control: later key layout", "the family has the same keys in all versions of transformers"))
    for control, check in (("gloo race", "late gathers"), ("later key layout", "both key layouts")):
        if check in names:
            missing.append(NotRun(f"control: {control}", f"fixed upstream; the check '{check}' proves it"))
    if 3 in stages and not {"gloo race", "late gathers"} & names:
        several = "requires several ranks on gloo and CPUs"
        reason = several if family.gathers_pairs else "no module of the family has two parameters to gather at once"
        reason = "diffusers gathers nothing while it loads" if family.denoiser else reason
        missing.append(NotRun("control: gloo race", reason))
    if NODES in names and 3 in stages and "hpZ" not in names:
        missing.append(NotRun("hpZ", "requires several ranks on each node"))
    if "bf16" not in names:
        missing.append(NotRun("bf16", "the main precision of this run"))
    if without_liger:
        missing.append(NotRun("liger", without_liger))
    return missing
