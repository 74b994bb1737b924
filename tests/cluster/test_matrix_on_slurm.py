"""`smokehouse matrix --on slurm` on a real Slurm: cells are its jobs, in which a program stands in for the smoke test."""

import os
import signal
import subprocess

from tests.unit.conftest import TestCheckout
from tests.unit.matrix.conftest import cells, tell

from .slurm_cluster import Cluster

DEADLINE = 120.0
OPTIONS = ("matrix", "--model", "tiny-vl", "--on", "slurm", "--options", "--gpus 0 --time 5")


def measure(with_grid: TestCheckout, cluster: Cluster, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the verb to its end."""
    return with_grid.run(*OPTIONS, *more, SLURM_CONF=cluster.environ["SLURM_CONF"])


def test_cells_are_jobs(with_grid: TestCheckout, cluster: Cluster) -> None:
    """One works and one hangs, which is a result; a second call measures what is missing, and no cell again."""
    tell(with_grid, **{"0.15.4": "works"})
    ended = measure(with_grid, cluster, "--transformers", "4.49.0", "--keep", "1")
    assert ended.returncode == 0, ended.stderr
    assert "submitted" in ended.stderr
    assert {name: cell["zero3"]["verdict"] for name, cell in cells(with_grid).items()} == {"4.49.0 0.15.4": "works"}
    tell(with_grid, **{"0.15.4": "hangs"})
    ended = measure(with_grid, cluster, "--jobs", "2", "--timeout", "2")
    assert ended.returncode == 0, ended.stderr
    assert "1 of 2 cells to measure" in ended.stderr
    found = {name: cell["zero3"]["verdict"] for name, cell in cells(with_grid).items()}
    assert found == {"4.49.0 0.15.4": "works", "4.51.3 0.15.4": "hangs"}
    cluster.wait_until(lambda: not cluster.left(), "no process of a job is left")


def test_interrupted_verb_cancels_its_jobs(with_grid: TestCheckout, cluster: Cluster) -> None:
    """Cells that were not measured are not recorded."""
    tell(with_grid, **{"0.15.4": "hangs"})
    os.mkfifo(with_grid.root / "started")
    with_grid.environ["SLURM_CONF"] = cluster.environ["SLURM_CONF"]
    process = with_grid.start(*OPTIONS, "--jobs", "2")
    begun = 0
    while begun < 2:
        begun += len((with_grid.root / "started").read_text().split())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    cluster.wait_until(lambda: not cluster.run("squeue", "-h") and not cluster.left(), "all jobs have ended")
    assert not (with_grid.root / "matrix" / "tiny-vl.json").exists()
