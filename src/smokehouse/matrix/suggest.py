"""Suggest a stack: of what was proven or measured, the nearest to what somebody asks for, and what is known of that."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.matrix.model import CORE, STAGES, Cell, Measured, Versions, line
from smokehouse.programs.process import run

_DEADLINE = 120.0  # seconds to read the headers of a checkpoint
# Prefixes of tensors in what transformers 4.52 and later save, which earlier ones leave random without an error.
_LATER_LAYOUT = ("model.language_model.", "model.visual.", "model.vision_tower.")
# The check that a cell has passed which loads them whole.
_BOTH_LAYOUTS = "both key layouts"
# Run with the loader on its path, which the builder never imports.
_INSPECT = """
import json, sys
from smokehouse_loader import inspect_checkpoint
found = inspect_checkpoint(sys.argv[1])
print(json.dumps({"names": [*found.tensors][:1000000], "problems": [str(one) for one in found.problems][:20]}))
"""


@dataclass(frozen=True)
class Stack:
    """An environment of the checkout whose lock was proven: its core versions, its CUDA, and where in a few words."""

    environment: str
    family: str
    versions: Versions
    cuda: str
    proven_on: str
    on_gpu: bool


@dataclass(frozen=True)
class Checkpoint:
    """What matters of a checkpoint: its model type, whether its keys are those of transformers 4.52 and later, and faults."""

    model_type: str
    later_layout: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """The nearest stack that works: its versions, where that was seen, and the environment that has it, empty for a cell."""

    versions: Versions
    where: str
    environment: str
    distance: int


@dataclass(frozen=True)
class Answer:
    """What is known of the request, and the suggestion, None where nothing that works is known."""

    known: tuple[Cell, ...]
    suggestion: Suggestion | None


def answer(
    measured: Measured, stacks: Sequence[Stack], wanted: Mapping[str, str], checkpoint: Checkpoint | None = None
) -> Answer:
    """Return what is known of `wanted`, versions or their beginnings by package, and the nearest stack that works.

    The nearest is the fewest releases away, of those that occur in the data; of equal ones a proven environment comes first,
    then what was seen on GPUs, then CUDA 12, which more drivers run, then the newest. For a `checkpoint`, only what loads its
    keys counts.
    """
    known = tuple(cell for cell in measured.cells if all(_fits(cell.versions, name, text) for name, text in wanted.items()))
    candidates = [_of_stack(stack) for stack in stacks]
    proven = {stack.versions for stack in stacks}
    candidates += [
        _of_cell(cell) for cell in measured.cells if cell.works and cell.versions not in proven and _loads(cell, checkpoint)
    ]
    if checkpoint and checkpoint.later_layout:
        candidates = [one for one in candidates if not one.environment or _environment_loads(measured, one.versions)]
    every = [one.versions for one in candidates] + [cell.versions for cell in measured.cells]
    far = {one: sum(_distance(every, one.versions, name, text) for name, text in wanted.items()) for one in candidates}
    best = min(candidates, key=lambda one: (far[one], *_preference(one)), default=None)
    if best is None:
        return Answer(known, None)
    return Answer(known, Suggestion(best.versions, best.where, best.environment, far[best]))


@dataclass(frozen=True)
class _Candidate:
    versions: Versions
    where: str
    environment: str
    on_gpu: bool
    cuda: str = ""


def _of_stack(stack: Stack) -> _Candidate:
    return _Candidate(stack.versions, f"proven on {stack.proven_on}", stack.environment, stack.on_gpu, stack.cuda)


def _of_cell(cell: Cell) -> _Candidate:
    on_gpu = cell.device == "cuda" and cell.ranks > 1
    limit = "" if on_gpu else "; not on GPUs with NCCL"
    where = f"measured on {cell.date[:10]} on {cell.device}, {cell.backend}, {cell.precision}, {cell.ranks} ranks{limit}"
    return _Candidate(cell.versions, where, "", on_gpu)


def _loads(cell: Cell, checkpoint: Checkpoint | None) -> bool:
    """Return whether a cell is known to load the keys of a checkpoint under each ZeRO stage."""
    if checkpoint is None or not checkpoint.later_layout:
        return True
    stages = {check.zero_stage for check in cell.checks if check.name == _BOTH_LAYOUTS and check.verdict == "passed"}
    return {*STAGES} <= stages


def _environment_loads(measured: Measured, versions: Versions) -> bool:
    """Return whether the transformers of an environment is that of a cell which loads the later layout."""
    later = Checkpoint("", later_layout=True, problems=())
    return any(cell.versions.transformers == versions.transformers and _loads(cell, later) for cell in measured.cells)


def _fits(versions: Versions, name: str, text: str) -> bool:
    """Return whether a version is `text`, or begins with it: 4.51.3 with 4.51."""
    version: str = getattr(versions, name)
    return version == text or version.startswith(f"{text}.")


def _distance(every: Sequence[Versions], versions: Versions, name: str, text: str) -> int:
    """Return how many releases of the data lie from a stack's version of a package to the requested one."""
    if _fits(versions, name, text):
        return 0
    releases = sorted({Version(getattr(one, name)) for one in every} | {Version(text)})
    return abs(releases.index(Version(getattr(versions, name))) - releases.index(Version(text)))


def _preference(one: _Candidate) -> tuple[object, ...]:
    order = ("deepspeed", "torch", "transformers")
    newest = tuple(tuple(-part for part in (*Version(getattr(one.versions, name)).release, 0, 0)[:3]) for name in order)
    return not one.environment, not one.on_gpu, not one.cuda.startswith("12."), newest


def read_checkpoint(checkout: Checkout, folder: Path) -> Checkpoint:
    """Return what matters of the checkpoint in a folder, by its config.json and the headers of its files; raises UserError."""
    config = folder / "config.json"
    try:
        content = json.loads(config.read_bytes()[: 1 << 24])
        model_type = content["model_type"]
    except OSError as broken:
        raise UserError(f"{config}: {broken.strerror}; give --checkpoint the folder of a checkpoint") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{config}: expected JSON with model_type, found none; give --checkpoint another folder") from None
    if not isinstance(model_type, str):
        raise UserError(f"{config}: model_type: expected text, found {type(model_type).__name__}; fix it")
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUTF8": "1", "PYTHONPATH": str(checkout.loader())}
    command = [sys.executable, "-B", "-c", _INSPECT, str(folder.absolute())]
    ended = run(command, deadline=_DEADLINE, environ=environ, cwd=Path("/"))
    if ended.code:
        said = line(" ".join(ended.stderr.splitlines()[-1:]))
        raise UserError(f"{folder}: expected a checkpoint, found what cannot be read ({said}); give another folder")
    try:
        found = json.loads(ended.stdout)
        names, problems = [str(name) for name in found["names"]], tuple(map(str, found["problems"]))
    except (ValueError, TypeError, KeyError):
        said = line(ended.stdout or "nothing", 80)
        raise UserError(f"{folder}: expected the names of its tensors, found {said}; install Smokehouse again") from None
    if not names:  # of which every stack would load all
        because = f" ({problems[0]})" if problems else ""
        raise UserError(f"{folder}: expected a checkpoint with tensors, found none{because}; give another folder")
    return Checkpoint(model_type, _is_later(names), problems)


def _is_later(names: Iterable[str]) -> bool:
    return any(name.startswith(_LATER_LAYOUT) for name in names)


def parsed(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return requested versions as the data has them, without how a wheel was built; raises UserError where one is none."""
    found = {}
    for name in (name for name in CORE if name in wanted):
        try:
            found[name] = Version(wanted[name]).public
        except InvalidVersion:
            raise UserError(f"--{name}: expected a version, found {wanted[name]!r}; write it like 4.51.3") from None
    return found
