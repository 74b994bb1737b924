"""Measure the cells of a grid as jobs of Slurm, each on a node of its own choice: an array, of which some run at a time.

Each job measures its cell in this checkout, on the disk that all nodes share, and returns it; this process alone records them.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError
from smokehouse.matrix import measure
from smokehouse.matrix.cell import ENVIRONMENT, Run
from smokehouse.matrix.cell import measure as measure_cell
from smokehouse.matrix.grid import Grid, folder_of
from smokehouse.matrix.measure import Settings
from smokehouse.matrix.model import STAGES, Cell, Versions
from smokehouse.programs import slurm as program
from smokehouse.runs import jobs, targets
from smokehouse.runs.slurm_queue import PASSED, Allocation, Submitted, submitted

_OPTIONS = (*PASSED, "--gpus", "--time")
_INSTALL = 30  # minutes for installing a cell, of which a grid of Slurm has one for each job
_POLL = 1.0  # seconds


@dataclass(frozen=True)
class Measurement:
    """Measures one cell; pickled by submitit, and run on a node."""

    checkout: Checkout
    grid: Grid
    versions: Versions
    how: Run

    def __call__(self) -> Cell | str:
        """Return the cell, or why it could not be measured."""
        try:
            with jobs.ended_in_order(), measure.locked(self.checkout, self.grid, self.versions) as (folder, lock):
                return measure_cell(self.checkout, self.grid.definition, self.versions, folder, self.how, [lock])
        except UserError as wrong:
            return str(wrong)


def allocation(grid: Grid, how: Run, options: Sequence[str]) -> Allocation:
    """Return what each job is given, by the `options` of Slurm; raises UserError.

    By default as many minutes as its smoke tests, of both ZeRO stages together and each alone, may take before they count as
    hanging: a cell that hangs is a result, and a job that Slurm ends is none.
    """
    given, rest = targets.split(targets.TARGETS["slurm"], options)
    if strange := [*rest, *(name for name in given if name not in _OPTIONS)]:
        raise UserError(f"matrix: expected {', '.join(_OPTIONS)} of Slurm, found {strange[0]}; leave it out")
    minutes = str(_INSTALL + ceil((1 + len(STAGES)) * how.deadline / 60))
    gpus = given.get("--gpus", "0" if how.device == "cpu" else "8")
    return Allocation(
        f"matrix-{grid.name}",
        nodes=1,
        gpus=jobs.number("--gpus", gpus, 0, 64),
        minutes=jobs.number("--time", given.get("--time", minutes), 1, 30 * 24 * 60),
        slurm={name[2:]: given[name] for name in PASSED if name in given},
    )


def run(checkout: Checkout, grid: Grid, settings: Settings, given: Allocation) -> int:
    """Measure the cells of a grid that are not recorded yet; return 1 where one could not be measured, else 0."""
    cells = measure.missing(checkout, grid, settings)
    status(f"{grid.definition.model}: {len(cells)} of {len(grid.cells)} cells to measure")
    if not cells:
        return 0
    if not program.is_here():
        raise UserError("--on slurm: expected sbatch and scontrol, found none; run it on a login node of the cluster")
    place = folder_of(checkout, grid.name)
    place.mkdir(parents=True, exist_ok=True)
    work = [Measurement(checkout, grid, versions, settings.how) for versions in cells]
    with (
        tempfile.TemporaryDirectory(prefix=".slurm-", dir=place, ignore_cleanup_errors=True) as folder,
        submitted(Path(folder), given, work, on_slurm=True, at_once=settings.jobs) as runs,
    ):
        failed = _collect(checkout, grid, settings, dict(zip(runs, cells, strict=True)))
    measure.prune(place, settings.keep)
    return failed


def _collect(checkout: Checkout, grid: Grid, settings: Settings, waiting: dict[Submitted, Versions]) -> int:
    """Record each cell when its job has ended; return 1 where one was not measured."""
    failed, kept = 0, list[Path]()
    while waiting:
        for number, (job, versions) in enumerate([*waiting.items()]):
            if job.has_ended(quiet=number > 0):
                del waiting[job]
                try:
                    measure.record(checkout, grid, _cell(job), keep=settings.keep > 0)
                    kept.append(folder_of(checkout, grid.name) / str(versions) / ENVIRONMENT)
                except UserError as wrong:
                    failed = 1
                    status(f"{versions.words}: not measured: {wrong}")
        # Only of cells that are recorded: locks of other nodes may not be seen here.
        for environment in kept[: max(0, len(kept) - settings.keep)]:
            shutil.rmtree(environment, ignore_errors=True)
        time.sleep(_POLL if waiting else 0.0)
    return failed


def _cell(job: Submitted) -> Cell:
    """Return the cell that a job has measured; raises UserError where it has none."""
    found = job.result()
    if isinstance(found, Cell):
        return found
    if isinstance(found, str):
        raise UserError(found)
    raise UserError(f"job {job.number}: {job.cause()}; {job.remedy()}, and run {as_typed('matrix')} again")
