"""The verb that suggests a stack from what was proven and measured."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import JsonOption
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from smokehouse.matrix.model import Cell, Measured
    from smokehouse.matrix.suggest import Answer, Checkpoint, Stack, Suggestion

_Version = Annotated[str | None, typer.Option(metavar="VERSION", help="Version that you ask for, or its beginning.")]
_SHOWN = 12  # cells of a request


def suggest(
    *,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model, by name, family or id on a hub.  [default: that of --checkpoint]"),
    ] = None,
    torch: _Version = None,
    transformers: _Version = None,
    deepspeed: _Version = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Suggest only what loads the keys of this checkpoint.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Suggest the nearest stack that works for a model, say what is known of the one asked for, and how to make it."""
    from smokehouse.matrix import suggest as suggesting

    given = {"torch": torch, "transformers": transformers, "deepspeed": deepspeed}
    wanted = suggesting.parsed({name: text for name, text in given.items() if text})
    checkout = Checkout.find(Path.cwd())
    inspected = suggesting.read_checkpoint(checkout, checkpoint) if checkpoint else None
    if model is None and inspected is None:
        raise UserError("suggest: expected --model or --checkpoint, found neither; add one")
    name, measured, stacks = _known(checkout, model or (inspected.model_type if inspected else ""))
    if inspected and inspected.model_type != measured.family:
        raise UserError(
            f"--checkpoint {checkpoint}: expected model_type {measured.family!r}, found {inspected.model_type!r}; "
            "drop --model, or give another checkpoint"
        )
    found = suggesting.answer(measured, stacks, wanted, inspected)
    command = _command(name, found.suggestion)
    if as_json:
        print(json.dumps(_document(measured, wanted, inspected, found, command), indent=1))
    else:
        print("\n".join(_lines(measured, wanted, inspected, found, command)))
    return 0 if found.suggestion else 1


def _known(checkout: Checkout, model: str) -> "tuple[str, Measured, list[Stack]]":
    """Return the name of a model, the cells that were measured of it, and its proven environments; raises UserError."""
    from smokehouse.matrix import grid, store
    from smokehouse.matrix.model import Measured

    stacks = _stacks(checkout)
    grids = {name: grid.family(checkout, name) for name in grid.names(checkout)}
    families = {stack.environment: stack.family for stack in stacks}
    known = {**families, **{family: family for family in [*families.values(), *grids.values()]}, **grids}
    if (match := grid.best_match(model, [*known])) is None:
        listed = ", ".join([*grids, *(name for name, family in families.items() if family not in grids.values())])
        add = checkout.relative(checkout.matrix_folder() / "NAME.toml")
        raise UserError(f"--model {model}: expected one of {listed}; add {add} to measure another")
    family = known[match]
    own = [stack for stack in stacks if stack.family == family]
    name = match if match in grids else next((name for name, of in grids.items() if of == family), "")
    if not name:
        return family, Measured(model=family, family=family), own
    return name, store.load(checkout, grid.read(checkout, name)), own


def _stacks(checkout: Checkout) -> "list[Stack]":
    """Return the environments whose locks are proven; one that cannot be read is named, and left out."""
    from smokehouse.matrix.model import CORE, Versions
    from smokehouse.matrix.suggest import Stack
    from smokehouse.pages import catalog

    found = []
    for name in checkout.environments():
        try:
            shown = catalog.read(checkout, name)
        except UserError as wrong:
            status(f"left out: {wrong}")
            continue
        if shown.evidence and {*CORE} <= {*shown.stack}:
            versions = Versions(**{core: shown.stack[core] for core in CORE})
            family = shown.environment.stack.model.family
            cuda = shown.environment.stack.cuda.version
            found.append(Stack(name, family, versions, cuda, shown.proven_on, shown.evidence.on_gpu))
    return found


def _command(name: str, suggestion: "Suggestion | None") -> str:
    """Return the command that makes a suggested stack: the locked environment, or the cell, which is proven on the way."""
    if suggestion is None:
        return ""
    if suggestion.environment:
        return as_typed("install", suggestion.environment, "PREFIX")
    versions = suggestion.versions.model_dump()
    axes = [part for core, version in versions.items() for part in (f"--{core}", version)]
    return as_typed("matrix", "--model", name, *axes, "--again", "--keep", "1")


def _document(
    measured: "Measured", wanted: dict[str, str], inspected: "Checkpoint | None", found: "Answer", command: str
) -> dict[str, Any]:
    suggestion = found.suggestion
    return {
        "model": measured.model,
        "family": measured.family,
        "requested": wanted,
        "checkpoint": inspected and {"later_layout": inspected.later_layout, "problems": [*inspected.problems]},
        "known": [_cell(cell) for cell in found.known] if wanted else [],
        "suggestion": suggestion
        and {
            **suggestion.versions.model_dump(),
            "environment": suggestion.environment or None,
            "where": suggestion.where,
            "releases_away": suggestion.distance,
            "command": command,
        },
    }


def _cell(cell: "Cell") -> dict[str, Any]:
    stages = {f"zero{number}": cell.stage(number).model_dump() for number in (2, 3)}
    return {**cell.versions.model_dump(), **stages, "date": cell.date, "device": cell.device}


def _lines(
    measured: "Measured", wanted: dict[str, str], inspected: "Checkpoint | None", found: "Answer", command: str
) -> list[str]:
    from smokehouse.matrix.measure import in_words

    lines = []
    if wanted:
        asked = ", ".join(f"{name} {text}" for name, text in wanted.items())
        lines.append(f"{measured.model} with {asked}: {'measured' if found.known else 'not measured'}")
        lines += [f"  {in_words(cell)}" for cell in found.known[:_SHOWN]]
        lines += [f"  and {len(found.known) - _SHOWN} more"] if len(found.known) > _SHOWN else []
    if inspected:
        layout = "of transformers 4.52 and later, which earlier ones leave random" if inspected.later_layout else "as published"
        lines.append(f"checkpoint: keys {layout}")
        lines += [f"  {problem}" for problem in inspected.problems]
    if found.suggestion is None:
        return [*lines, f"no stack that works is known; run {as_typed('matrix', '--model', measured.model)} to measure"]
    one = found.suggestion
    away = f", {one.distance} measured version{'s' if one.distance > 1 else ''} away" if one.distance else ""
    what = f"environment {one.environment}, " if one.environment else ""
    return [*lines, f"nearest that works{away}: {what}{one.versions.words}", f"  {one.where}", f"  make it: {command}"]
