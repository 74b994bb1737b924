"""A Slurm that runs for all tests, and a stand-in for an environment where the test is about Slurm and not about torch."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.conftest import checkout, index, packages, server, uv_cache  # noqa: F401 - fixtures of a checkout
from tests.unit.matrix.conftest import with_grid  # noqa: F401 - a fixture

from .slurm_cluster import NODES, Cluster

# Starts one rank on its node, as torchrun with --nproc-per-node=1 does; the rest of its options is for the rendezvous.
_TORCHRUN = """\
#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
export RANK="$SLURM_NODEID" WORLD_SIZE="$SLURM_JOB_NUM_NODES"
exec python "$@"
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a Slurm with three nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """Yield the Slurm, whose nodes all run again after the test, and on which no job is left."""
    yield slurm
    slurm.run("scancel", "--full", "--user=root")
    for node in NODES:
        if not slurm.processes(node):
            slurm.start_node(node)
    slurm.wait_until(lambda: not slurm.run("squeue", "-h"), "all jobs have ended")
    for node in slurm.run("sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split():
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    slurm.wait_until(lambda: slurm.run("sinfo", "-h", "-o", "%t").split() == ["idle"], "all nodes are idle")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Return the folder of a stand-in for an environment: a Python, and a torchrun that starts one rank."""
    folder = tmp_path / "prefix"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    torchrun = folder / "bin" / "torchrun"
    torchrun.write_text(_TORCHRUN)
    torchrun.chmod(0o755)
    return folder
