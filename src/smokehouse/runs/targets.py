"""The engines that a smoke test can be handed to, and what each of them needs: one table.

A module of this package with the engine's name has `smoke(checkout, name, options)`, which returns the exit code. Its job files
are templates in `cluster/`, which people also copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.installs.machine import Finding

_PREFLIGHT = "python -m smoke_tests preflight"

Template = Literal["kubernetes", "slurm", "skypilot"]


@dataclass(frozen=True)
class Option:
    """An option of an engine: its name, what its value is called, None for a flag, and help."""

    name: str
    value: str | None
    text: str


@dataclass(frozen=True)
class Target:
    """An engine: the program that talks to it, what its jobs need, and the options that belong to it."""

    name: Template
    program: str
    image: bool  # whether a job needs an image, pinned by digest
    shared: str  # what all nodes of a job have to share
    options: tuple[Option, ...]


_NODES = Option("--nodes", "N", "Run on this many nodes (default: 1).")
_GPUS = Option("--gpus", "M", "Use this many GPUs of each node; 0 for a run on CPUs (default: 8).")
_IMAGE = Option("--image", "REF", "The image, as HOST/NAME@sha256:DIGEST.")
_DRY_RUN = Option("--dry-run", None, "Print the job; start nothing.")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "kubernetes",
            "kubectl",
            image=True,
            shared="a PersistentVolumeClaim with access mode ReadWriteMany",
            options=(
                _IMAGE,
                _NODES,
                _GPUS,
                Option("--fabric", "KIND", "infiniband, efa or ethernet between nodes (default: ethernet)."),
                Option("--kind", "KIND", "trainjob, with Kubeflow Trainer, or jobset, without (default: trainjob)."),
                Option("--claim", "NAME", "The claim that all nodes mount as /cache (default: smokehouse)."),
                Option("--queue", "NAME", "The queue of Kueue that admits the job (default: none)."),
                Option("--namespace", "NAME", "The namespace of the job (default: kubectl's)."),
                Option("--context", "NAME", "The cluster, as kubectl calls it (default: kubectl's)."),
                Option("--deadline", "S", "End the job after this many seconds (default: 7200)."),
                Option("--keep", None, "Leave the job in the cluster when it has ended."),
                _DRY_RUN,
            ),
        ),
        Target(
            "slurm",
            "sbatch and srun",
            image=False,
            shared="a file system with this checkout, the environment and the report",
            options=(
                _NODES,
                _GPUS,
                Option(
                    "--container", "KIND", "Run in an image, with pyxis or apptainer (default: none, an installed environment)."
                ),
                Option("--image", "REF", "The image: a .sif file, or a reference as Apptainer or enroot writes it."),
                Option("--prefix", "DIR", "Use the environment that is installed in this folder (default: install it)."),
                Option("--partition", "NAME", "Submit to this partition (default: the cluster's)."),
                Option("--account", "NAME", "Charge this account (default: the user's)."),
                Option("--qos", "NAME", "Request this quality of service (default: the account's)."),
                Option("--exclude", "NODES", "Leave out these nodes (default: none)."),
                Option("--time", "MINUTES", "End the job after this time (default: 60)."),
                _DRY_RUN,
            ),
        ),
    )
}


def smoke(checkout: Checkout, engine: str, name: str, options: Sequence[str]) -> int:
    """Hand the smoke test of the environment `name` to an engine, and return its exit code; raises UserError."""
    if engine not in TARGETS:
        raise UserError(f"--on {engine}: expected {' or '.join(TARGETS)}, found another engine; give one of them")
    module = import_module(f"smokehouse.runs.{engine}")
    return int(module.smoke(checkout, name, options))


def doctor(checkout: Checkout, engine: str, name: str, options: Sequence[str]) -> dict[str, list[Finding]] | None:
    """Return the findings on the machines of a job, by machine; None where the job was only printed. Raises UserError."""
    examine = getattr(import_module(f"smokehouse.runs.{engine}"), "doctor", None) if engine in TARGETS else None
    if examine is None:
        raise UserError(
            f"doctor: --on {engine}: expected kubernetes or slurm, found another engine; run {_PREFLIGHT} in a job of it"
        )
    found: dict[str, list[Finding]] | None = examine(checkout, name, options)
    return found


def split(target: Target, options: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of `target` among `options`, "yes" for a flag, and the others; raises UserError.

    An option that is given twice counts once, with its last value.
    """
    known = {option.name: option for option in target.options}
    found: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(options)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        option = known.get(name)
        if option is None:
            rest.append(argument)
        elif option.value is None:
            if equals:
                raise UserError(f"{name}: expected no value, found {value!r}; leave it out")
            found[name] = "yes"
        else:
            value = value if equals else next(remaining, "")
            if not value:
                raise UserError(f"{name}: expected {option.value}, found nothing; {option.text}")
            found[name] = value
    return found, rest


def help_lines() -> list[str]:
    """Return the options of all engines, as the help of the smoke test lists them."""
    lines = [f"  --on ENGINE           Hand the smoke test to an engine: {', '.join(TARGETS)}; without it, run it here."]
    for target in TARGETS.values():
        lines += ["", f"With --on {target.name} (needs {target.program}, and {target.shared}):"]
        for option in target.options:
            typed = " ".join(filter(None, (option.name, option.value)))
            lines.append(f"  {typed:<22}{option.text}")
    return lines
