"""Which checks and controls of a plan a run does: names, and what they need. Imports no torch."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports torch
    from smoke_tests.plan import Job

# The checks and controls of a run without options. Some depend on the device, the ranks or the stack; see plan.py.
DEFAULT = (
    *("checkpoint", "plain run", "auto classes", "nodes", "network", "versions", "collectives", "load", "weights", "generate"),
    *("initialize", "save_model", "load_model", "denoiser inside zero.Init", "saved partitioned"),
    *("train", "parity", "resume", "memory", "mixed modality: dummy image", "mixed modality", "bf16", "consolidated weights"),
    *("hpZ", "universal checkpoint: conversion", "universal checkpoint"),
    *("missing key", "later key layout", "both key layouts", "flipped bit", "truncated shard", "gloo race", "late gathers"),
    *("seed failure: load_state_dict", "seed failure: zero.Init", "ZeRO-1 in place of ZeRO-2", "no ZeRO", "wrong shape"),
)
# Those that only --all runs on a CPU, or --only with their name.
EXTRA = (
    *("trainer: plain run", "trainer", "real sizes: plain run", "real sizes", "attention", "LoRA", "frozen vision tower"),
    *("cpu ops", "offload", "throughput", "liger", "kernels", "overlap_comm"),
)
# Those of them that a run on GPUs has without --all, since they are about GPUs: on a CPU they show that their code runs.
ON_GPUS = ("kernels", "overlap_comm")
NAMES = (*DEFAULT, *EXTRA)
# Every other one loads the checkpoint, and `parity` compares what `train` did.
ALWAYS = "checkpoint"
PART_OF = {"parity": "train"}


@dataclass(frozen=True)
class Selection:
    """What the user chose: `only` these names (empty: all of a run), without those in `skip`; `extra` adds those of --all."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    extra: bool = False

    def requested(self, names: Iterable[str], device: str) -> list[str]:
        """Return which of `names` the user requests on `device` (cpu or cuda)."""
        base = self.only or (NAMES if self.extra else defaults(device))
        return [name for name in names if name in base and name not in self.skip]


def defaults(device: str) -> tuple[str, ...]:
    """Return the checks and controls of a run without options on `device` (cpu or cuda)."""
    return (*DEFAULT, *ON_GPUS) if device == "cuda" else DEFAULT


def canonical(name: str) -> str:
    """Return the check or control that `name` means, whatever its case and separators. Raises ValueError."""
    known = {_slug(known): known for known in NAMES}
    if _slug(name) not in known:
        raise ValueError(f"expected names of {', '.join(NAMES)}, found {name!r}")
    return known[_slug(name)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def names_in(jobs: "Iterable[Job]") -> list[str]:
    """Return the names that a plan reports, each once, in the plan's order."""
    names = [step.name for job in jobs for step in job.steps]
    names += [part for part, whole in PART_OF.items() if whole in names]
    return list(dict.fromkeys(names))


def select(jobs: "Sequence[Job]", requested: Collection[str]) -> "list[Job]":
    """Return the plan `jobs` with the steps of the `requested` names, and of all that they need."""
    kept = {ALWAYS, *(PART_OF.get(name, name) for name in requested)}
    while missing := _needed(jobs, kept) - kept:
        kept |= missing
    return _without_gaps(
        [dataclasses.replace(job, steps=tuple(step for step in job.steps if step.name in kept)) for job in jobs], jobs
    )


def not_requested(jobs: "Iterable[Job]", selected: "Iterable[Job]", device: str) -> list[str]:
    """Return the names of a default run of the plan `jobs` on `device` that are not in its part `selected`."""
    run = names_in(selected)
    return [name for name in names_in(jobs) if name in defaults(device) and name not in run]


def _needed(jobs: "Iterable[Job]", kept: Collection[str]) -> set[str]:
    """Return what the steps of the names `kept` continue with, and whose files or outcomes they read."""
    steps = [step for job in jobs for step in job.steps if step.name in kept]
    return {name for step in steps for name in (step.model_of, step.engine_of, *step.needs) if name}


def _without_gaps(selected: "list[Job]", jobs: "Sequence[Job]") -> "list[Job]":
    """Drop jobs without steps; what waited for them, or for a step that is gone, waits for what came before it."""
    whole = {job.name: job for job in jobs}
    names = {job.name: [step.name for step in job.steps] for job in selected}

    def waited(after: str) -> list[str]:
        name, _, step = after.partition("/")
        if not names[name]:
            return [earlier for one in whole[name].after for earlier in waited(one)]
        if not step or step in names[name]:
            return [after]
        order = [one.name for one in whole[name].steps]
        before = [one for one in order[: order.index(step)] if one in names[name]]
        return [f"{name}/{before[-1]}"] if before else [earlier for one in whole[name].after for earlier in waited(one)]

    return [
        dataclasses.replace(job, after=tuple(dict.fromkeys(name for one in job.after for name in waited(one))))
        for job in selected
        if job.steps
    ]
