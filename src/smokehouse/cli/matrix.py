"""The verb that measures which versions work together."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import JsonOption, split_text
from smokehouse.errors import UserError

_Axis = Annotated[
    list[str] | None,
    typer.Option(metavar="VERSION,...", help="Measure these versions only; repeatable.  [default: those of the grid]"),
]


def matrix(
    *,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model, by the name of a grid in matrix/, its family or its id on a hub.")
    ] = DEFAULT_ENVIRONMENT,
    torch: _Axis = None,
    transformers: _Axis = None,
    deepspeed: _Axis = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Measure this many cells at a time.")] = 1,
    keep: Annotated[int, typer.Option(metavar="N", min=0, help="Leave the environments of the last N cells on disk.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure cells that are recorded already, too.")] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device of the smoke test; with auto, a cell of any is measured.")
    ] = "auto",
    timeout: Annotated[
        float, typer.Option(metavar="S", min=1, max=86400, help="Stop the smoke test of a cell after this many seconds.")
    ] = 1800,
    listed: Annotated[bool, typer.Option("--list", help="List the cells and what is known of each; measure nothing.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Measure what is installed, and change nothing in it.")] = False,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="With --here, this interpreter.  [default: the first python on PATH]")
    ] = None,
    prefix: Annotated[str | None, typer.Option(metavar="DIR", help="With --here, the environment in this folder.")] = None,
    on: Annotated[
        str, typer.Option(metavar="ENGINE", help="Measure each cell as a job of this engine, --jobs of them at a time: slurm.")
    ] = "",
    options: Annotated[
        str, typer.Option("--options", metavar="TEXT", help="Options of the engine in one text, as `smoke --on` has them.")
    ] = "",
    as_json: JsonOption = False,
) -> int:
    """Measure which versions of torch, transformers and DeepSpeed work with a model, and record it in matrix/MODEL.json."""
    from smokehouse.matrix import grid, measure, store
    from smokehouse.matrix.cell import Run

    if as_json and not listed:
        raise UserError("--json: expected --list with it; add it")
    if (python or prefix) and not here:
        raise UserError(f"{'--python' if python else '--prefix'}: expected --here with it, as a cell has its own; add --here")
    if on not in ("", "slurm") or (options and not on):
        raise UserError(f"matrix: expected --on slurm, found {f'--on {on}' if on else 'none with --options'}; correct it")
    if on and (here or listed):
        raise UserError(f"--on: expected no {'--here' if here else '--list'} with it; leave one out")
    checkout = Checkout.find(Path.cwd())
    chosen = {"torch": torch, "transformers": transformers, "deepspeed": deepspeed}
    axes = {name: _versions(name, values) for name, values in chosen.items() if values}
    if here and axes:
        raise UserError(f"--here: expected no --{next(iter(axes))}, as it measures what is installed; drop one")
    requested = grid.read(checkout, model, axes)
    if listed:
        _print(measure.known(store.load(checkout, requested), requested, device), as_json=as_json)
        return 0
    checkout.require_own("matrix", "matrix")
    how = Run(device, timeout)
    if on:
        from smokehouse.matrix import on_slurm

        settings = measure.Settings(how, keep, jobs, again)
        return on_slurm.run(checkout, requested, settings, on_slurm.allocation(requested, how, split_text(options)))
    if here:
        from smokehouse.runs.here import find_interpreter

        interpreter, _ = find_interpreter("matrix", python, prefix)
        print(measure.summary(measure.run_here(checkout, requested, interpreter, how)))
        return 0
    return measure.run(checkout, requested, measure.Settings(how, keep, jobs, again))


def _versions(name: str, values: list[str]) -> list[str]:
    """Return the versions in the values of an option; raises UserError where one is no release."""
    from smokehouse.matrix.grid import release

    found = [part.strip() for value in values for part in value.split(",")]
    for text in found:
        try:
            release(text)
        except ValueError as wrong:
            raise UserError(f"--{name}: {wrong}") from None
    return list(dict.fromkeys(found))


def _print(rows: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print("  ".join(f"{row[name]:<{width}}" for name, width in zip(row, (9, 13, 11, 16, 16, 20), strict=True)).rstrip())
