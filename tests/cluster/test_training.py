"""The tiny Qwen2.5-VL trains under ZeRO-3 over two nodes of a real Slurm, loses one, and goes on with another."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from smoke_tests import families
from tests.smoke.conftest import NAME, WRITING, Starter

from .slurm_cluster import NODES, Cluster

STEPS, DEADLINE = 6, 240.0


@pytest.fixture(scope="module")
def starter(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Return what runs the environment's Python."""
    return Starter(root, tmp_path_factory.mktemp("training"), NAME)


@pytest.fixture(scope="module")
def checkpoint(starter: Starter) -> Path:
    """Return the synthetic checkpoint."""
    folder = starter.folder / families.DEFAULT
    starter.inside("-c", WRITING, str(folder))
    return folder


def submit(root: Path, cluster: Cluster, starter: Starter, folder: Path, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Submit the training as users do, with the preflight of this checkout, and return the job's number."""
    variables = {"PREFIX": str(starter.python.parents[1]), "SMOKEHOUSE": str(root), "NPROC": "1"}
    # One machine: no name of a host has to be looked up, and each rank has one core.
    variables |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    slurm = root / "cluster" / "slurm"
    command = ["sbatch", "--parsable", f"--chdir={folder}", *options, str(slurm / "train.sbatch"), str(slurm / "train.py")]
    return cluster.run(*command, *arguments, environ=variables).strip()


def losses(folder: Path) -> dict[int, list[float]]:
    """Return the losses of each step, one for each time that it was trained."""
    found = defaultdict(list)
    file = folder / "losses.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        entry = json.loads(line)
        found[entry["step"]].append(entry["loss"])
    return found


def test_training_goes_on_after_a_lost_node(
    root: Path, cluster: Cluster, starter: Starter, checkpoint: Path, tmp_path: Path
) -> None:
    """On the third node, from the last checkpoint, with the losses that the lost node was about to give."""
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--steps", str(STEPS), "--save-every", "2"]
    job = submit(root, cluster, starter, tmp_path, *arguments, "--pause", "2")
    log = tmp_path / f"slurm-{job}.out"
    cluster.wait_until(lambda: 1 in losses(tmp_path) or cluster.state(job) == "FAILED", "step 1 is trained", DEADLINE)
    assert cluster.state(job) == "RUNNING", log.read_text()
    lost = cluster.nodes(job)[1]
    cluster.wait_until(lambda: 3 in losses(tmp_path), "step 3 is trained", DEADLINE)
    cluster.kill_node(lost)  # at once: step 4 is saved some seconds later
    cluster.wait_until(lambda: cluster.field(job, "Restarts") == "1", "the job is requeued", DEADLINE)
    cluster.wait_until(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), "the job ends", DEADLINE)
    said = log.read_text()
    assert cluster.state(job) == "COMPLETED", said
    assert cluster.nodes(job) == [node for node in NODES if node != lost]
    assert "resumed after step 2 on 2 ranks" in said
    found = losses(tmp_path)
    assert sorted(found) == [*range(1, STEPS + 1)]
    assert len(found[3]) == 2
    assert found[3][0] == pytest.approx(found[3][1], abs=1e-6)
    assert (tmp_path / "out" / "latest").read_text() == f"step{STEPS}"
    cluster.wait_until(lambda: not cluster.left(), "no process of the job is left")
