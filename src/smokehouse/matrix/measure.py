"""Measure the cells of a grid that nobody has measured: one after the other or several at a time, each at most once.

A cell that cannot be measured stops no other one.
"""

import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import heartbeat, size, status
from smokehouse.errors import UserError
from smokehouse.matrix import store
from smokehouse.matrix.cell import ENVIRONMENT, Run, measure, measure_here
from smokehouse.matrix.grid import Grid, folder_of
from smokehouse.matrix.model import STAGES, Cell, Measured, Stage, Versions, line
from smokehouse.programs.process import end_with_parent
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive, exclusive_if_free

_DONE = "measured"  # in the folder of a cell once it is recorded


@dataclass(frozen=True)
class Settings:
    """How cells are measured: `jobs` at a time, recorded ones `again`; the last `keep` environments stay on disk."""

    how: Run = field(default_factory=Run)
    keep: int = 0
    jobs: int = 1
    again: bool = False


def run(checkout: Checkout, grid: Grid, settings: Settings) -> int:
    """Measure the cells of a grid that are not recorded yet; return 1 where one could not be measured, else 0."""
    folder_of(checkout, grid.name).mkdir(parents=True, exist_ok=True)
    cells = missing(checkout, grid, settings)
    status(f"{grid.definition.model}: {len(cells)} of {len(grid.cells)} cells to measure")
    try:
        return _run_jobs(checkout, grid, settings, cells)
    finally:
        prune(folder_of(checkout, grid.name), sys.maxsize)  # what a killed call has left


def _run_jobs(checkout: Checkout, grid: Grid, settings: Settings, cells: Sequence[Versions]) -> int:
    jobs = max(1, min(settings.jobs, len(cells)))
    if jobs == 1:
        return _run_all(checkout, grid, settings, cells)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_work, args=(checkout, grid, settings, cells[number::jobs]), daemon=True)
        for number in range(jobs)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            if worker.pid:
                worker.terminate()  # it ends what it has started, as this process would
                worker.join()
        raise
    return int(any(worker.exitcode for worker in workers))


def run_here(checkout: Checkout, grid: Grid, python: Path, how: Run) -> Cell:
    """Measure what is installed where the interpreter `python` looks, without changing it, and record it; raises UserError."""
    folder = folder_of(checkout, grid.name) / "here"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_lock_of(folder), f"measuring {python}") as descriptor:
        cell = measure_here(checkout, grid.definition.family, python, folder, how, [descriptor])
        store.append(checkout, grid, cell)
    return cell


def missing(checkout: Checkout, grid: Grid, settings: Settings) -> list[Versions]:
    """Return the requested cells that are to be measured."""
    measured = store.load(checkout, grid)
    return [versions for versions in grid.cells if settings.again or not _find(measured, grid, versions, settings)]


def known(measured: Measured, grid: Grid, device: str) -> list[dict[str, str]]:
    """Return a row for each requested cell: its versions, the verdict of each ZeRO stage or "not run", and when."""
    rows = []
    for versions in grid.cells:
        cell = measured.find(versions, grid.definition.python, None if device == "auto" else device)
        verdicts = {f"zero{number}": cell.stage(number).verdict if cell else "not run" for number in STAGES}
        rows.append(versions.model_dump() | verdicts | {"date": cell.date if cell else ""})
    return rows


def _find(measured: Measured, grid: Grid, versions: Versions, settings: Settings) -> Cell | None:
    device = None if settings.how.device == "auto" else settings.how.device
    return measured.find(versions, grid.definition.python, device)


def _work(checkout: Checkout, grid: Grid, settings: Settings, cells: Sequence[Versions]) -> None:
    end_with_parent(signal.SIGTERM)
    sys.exit(_run_all(checkout, grid, settings, cells))


def _run_all(checkout: Checkout, grid: Grid, settings: Settings, cells: Sequence[Versions]) -> int:
    failed = 0
    for versions in cells:
        try:
            _run_one(checkout, grid, settings, versions)
        except UserError as wrong:
            failed = 1
            status(f"{versions.words}: not measured: {wrong}")
    return failed


def _run_one(checkout: Checkout, grid: Grid, settings: Settings, versions: Versions) -> None:
    with locked(checkout, grid, versions) as (folder, descriptor):
        measured = store.load(checkout, grid)
        if not settings.again and _find(measured, grid, versions, settings):  # by another process meanwhile
            return
        with heartbeat(f"measuring {versions.words}"):
            cell = measure(checkout, grid.definition, versions, folder, settings.how, [descriptor])
        record(checkout, grid, cell, keep=settings.keep > 0)
    prune(folder.parent, settings.keep)


@contextmanager
def locked(checkout: Checkout, grid: Grid, versions: Versions) -> Iterator[tuple[Path, int]]:
    """Yield the folder of a cell, in which no other process measures, and the descriptor of its lock; raises UserError.

    What is started keeps it, so that nobody measures a cell while what a killed call has started still writes there.
    """
    folder = folder_of(checkout, grid.name) / str(versions)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_lock_of(folder), f"measuring {versions.words}") as descriptor:
        yield folder, descriptor


def record(checkout: Checkout, grid: Grid, cell: Cell, *, keep: bool) -> None:
    """Record a cell that was measured, and remove its environment unless it is to be kept; raises UserError."""
    folder = folder_of(checkout, grid.name) / str(cell.versions)
    store.append(checkout, grid, cell)
    if not keep:
        shutil.rmtree(folder / ENVIRONMENT, ignore_errors=True)
    files.write(folder / _DONE, f"{cell.date}\n")
    status(summary(cell))


def summary(cell: Cell) -> str:
    """Return what a cell does and cost in one line."""
    return f"{in_words(cell)} ({cell.install_seconds:.0f} s + {cell.run_seconds:.0f} s, {size(cell.disk_bytes)})"


def in_words(cell: Cell) -> str:
    """Return what a cell does in one line."""
    return f"{cell.versions.words}: {', '.join(f'ZeRO-{number} {_in_words(cell.stage(number))}' for number in STAGES)}"


def _in_words(stage: Stage) -> str:
    because = stage.failure or line(stage.error, 80)
    return f"{stage.verdict}{f' ({because})' if because else ''}"


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def prune(folder: Path, keep: int) -> None:
    """Remove the environments that nobody is measuring, but for the last `keep` of recorded cells; evidence stays.

    Those of cells that were not measured to their end go too, since the next measurement installs them again.
    """
    recorded = sorted(folder.glob(f"*/{_DONE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    kept = [done.parent for done in recorded if (done.parent / ENVIRONMENT).exists()][:keep]
    for environment in folder.glob(f"*/{ENVIRONMENT}"):
        if environment.parent in kept:
            continue
        with exclusive_if_free(_lock_of(environment.parent)) as free:
            if free:
                shutil.rmtree(environment, ignore_errors=True)
