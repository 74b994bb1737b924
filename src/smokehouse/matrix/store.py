"""The file of measured cells, `matrix/<model>.json`: read strictly, and appended to atomically."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packaging.version import Version

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.environments.documents import read_json
from smokehouse.errors import UserError
from smokehouse.matrix import outcome
from smokehouse.matrix.grid import Grid, public
from smokehouse.matrix.model import CORE, STAGES, Cell, Measured
from smokehouse.storage import exclusive, files

_CLOCK_ERROR = timedelta(days=1)  # by which the clocks of two machines may differ, and the date be one of another zone


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
    if problem := _problem(found, grid):
        raise UserError(f"{checkout.relative(path)}: {problem}; {remedy}")
    return found


def _problem(found: Measured, grid: Grid) -> str:
    """Return why the cells in a file are none that were measured for a grid; empty where they may be."""
    definition = grid.definition
    if (found.model, found.family) != (definition.model, definition.family):
        return f"expected cells of {definition.model} ({definition.family}), found those of {found.model} ({found.family})"
    if len({cell.key for cell in found.cells}) != len(found.cells):
        return "expected each cell once, found one twice"
    return next((f"{cell.versions.words}: {problem}" for cell in found.cells if (problem := _contradiction(cell))), "")


def _contradiction(cell: Cell) -> str:
    """Return what a cell says that its own checks, packages or date do not show; empty for nothing."""
    for number in STAGES:
        shown = outcome.stage(cell.checks, number).verdict
        if cell.stage(number).verdict == "works" != shown:
            return f"zero{number}: expected {shown}, which its checks show, found works"
    if "works" in (cell.zero2.verdict, cell.zero3.verdict):
        for name, expected in cell.versions.model_dump().items():
            if public(found := cell.lock.get(name, "none")) != expected:
                return f"lock: expected {name} {expected}, found {found}"
        if cell.ranks < 2:
            return f"ranks: expected two or more, which partition and reduce, found {cell.ranks}"
    if datetime.fromisoformat(cell.date) > datetime.now(UTC) + _CLOCK_ERROR:
        return f"date: expected a time in the past, found {cell.date}"
    return ""


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
