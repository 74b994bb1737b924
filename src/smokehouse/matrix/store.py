"""The file of measured cells, `matrix/<model>.json`: read strictly, and appended to atomically."""

import json
from pathlib import Path

from packaging.version import Version

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.environments.documents import read_json
from smokehouse.matrix.grid import Grid
from smokehouse.matrix.model import CORE, Cell, Measured
from smokehouse.storage import exclusive, files


def path_of(checkout: Checkout, name: str) -> Path:
    """Return the file of the cells of a grid, whether it exists or not."""
    return checkout.matrix_folder() / f"{name}.json"


def load(checkout: Checkout, grid: Grid) -> Measured:
    """Return the cells of a grid that were measured, none without a file; raises UserError where it is invalid."""
    path = path_of(checkout, grid.name)
    if not path.exists():
        return Measured(model=grid.definition.model, family=grid.definition.family)
    remedy = f"restore it with git, or remove it and run {as_typed('matrix', '--model', grid.name)}"
    found, _ = read_json(path, checkout.relative(path), Measured, remedy)
    return found


def append(checkout: Checkout, grid: Grid, cell: Cell) -> None:
    """Add a cell to the file, in place of an earlier one of the same versions, Python and device; raises UserError."""
    path = path_of(checkout, grid.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_lock(checkout, grid), "recording a cell"):
        measured = load(checkout, grid)
        cells = [other for other in measured.cells if other.key != cell.key] + [cell]
        files.write(path, text(measured.model_copy(update={"cells": sorted(cells, key=_order)})))


def _lock(checkout: Checkout, grid: Grid) -> Path:
    folder = checkout.build / "matrix"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{grid.name}.json.lock"


def _order(cell: Cell) -> tuple[object, ...]:
    return (*(Version(getattr(cell.versions, name)) for name in CORE), Version(cell.python), cell.device)


def text(measured: Measured) -> str:
    """Return the file as text: a line for each cell, so that a diff shows which ones changed."""
    head = {name: value for name, value in measured.model_dump(mode="json").items() if name != "cells"}
    lines = [json.dumps(cell.model_dump(mode="json"), ensure_ascii=False) for cell in measured.cells]
    cells = ",\n".join(f"  {one}" for one in lines)
    opening = json.dumps(head, ensure_ascii=False)[:-1]
    return f'{opening}, "cells": [\n{cells}\n]}}\n' if cells else f'{opening}, "cells": []}}\n'
