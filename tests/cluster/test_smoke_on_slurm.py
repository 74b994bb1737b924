"""`smokehouse smoke NAME --on slurm` on a real Slurm, as a user types it."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.smoke.conftest import NAME

from .slurm_cluster import Cluster

DEADLINE = 400.0


def start(root: Path, cluster: Cluster, report: Path, *options: str) -> subprocess.Popen[str]:
    """Start the verb for a run over two nodes on CPUs."""
    command = [sys.executable, "-m", "smokehouse", "smoke", NAME, "--on", "slurm", "--nodes", "2", "--gpus", "0"]
    return subprocess.Popen(
        [*command, "--report", str(report), *options],
        cwd=root,
        env=cluster.environ | {"PYTHONPATH": str(root / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def drained(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster while no node takes jobs, so that those which are submitted wait."""
    cluster.run("scontrol", "update", "NodeName=n[1-3]", "State=DRAIN", "Reason=test")
    yield cluster
    cluster.run("scontrol", "update", "NodeName=n[1-3]", "State=RESUME")


def only_job(cluster: Cluster) -> str:
    """Wait for the one job of the cluster, and return its number."""
    cluster.wait_until(lambda: cluster.run("squeue", "-h", "-o", "%A").split(), "a job is submitted", DEADLINE)
    [job] = cluster.run("squeue", "-h", "-o", "%A").split()
    return job


def test_two_nodes_are_proven_together(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    process = start(root, cluster, folder, "--nproc", "1", "--zero", "3", "--only", "network,collectives")
    said, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said + errors
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["world_size"], len(report["nodes"])) == ("passed", 2, 2)
    [collectives] = [check for check in report["checks"] if check["name"] == "collectives"]
    assert sorted(rank["node"] for rank in collectives["ranks"]) == [0, 1]
    assert "PASSED (partial)" in said  # the log of the job is shown
    assert [path.name for path in tmp_path.iterdir()] == ["report"]  # its token and its pickles are gone
    cluster.wait_until(lambda: not cluster.left(), "no process of the job is left")


def test_job_that_is_cancelled(root: Path, drained: Cluster, tmp_path: Path) -> None:
    process = start(root, drained, tmp_path / "report")
    job = only_job(drained)
    drained.run("scancel", job)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith(
        f"smokehouse: job {job}: expected a report in {tmp_path / 'report'}, found that the job ended"
    )
    assert errors.splitlines()[-1].endswith("in state CANCELLED; see what it said above")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_verb_that_is_interrupted_cancels_its_job(root: Path, drained: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    process = start(root, drained, tmp_path / "report")
    job = only_job(drained)
    assert process.stderr
    while f"job {job}: submitted" not in process.stderr.readline():
        assert process.poll() is None
    os.kill(process.pid, number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode not in (0, 2)
    drained.wait_until(lambda: drained.state(job) == "CANCELLED", "the job is cancelled")


def test_what_slurm_refuses(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    process = start(root, cluster, tmp_path / "report", "--partition", "nowhere")
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "invalid partition" in errors.lower()
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--container", "docker"), "--container docker: expected none, pyxis, apptainer, found another"),
        (("--container", "pyxis"), "--container pyxis: expected --image with pyxis, found the opposite"),
        (("--image", "env.sif"), "--container none: expected no --image without --container pyxis or apptainer"),
        (("--nodes", "0"), "--nodes 0: expected a number from 1 to 10000, found another"),
        (("--time", "x"), "--time x: expected a number from 1 to 43200, found another"),
        (("--only", "nonsense"), "expected names of"),
        (("--bundle", "b"), "--bundle: expected no --bundle with --on slurm; leave it out"),
    ],
)
def test_invalid_options(root: Path, slurm: Cluster, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    process = start(root, slurm, tmp_path / "report", *options)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors.count("\n"), expected in errors) == (2, 1, True), errors


def test_dry_run_prints_the_job(root: Path, slurm: Cluster, tmp_path: Path) -> None:
    image = f"docker://ghcr.io/owner/env@sha256:{'0' * 64}"
    process = start(root, slurm, tmp_path / "report", "--container", "apptainer", "--image", image, "--dry-run")
    said, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert said.startswith("srun --ntasks-per-node=1 --nodes=2 --kill-on-bad-exit=1 apptainer exec --bind ")
    assert f"{image} /opt/smokehouse/entrypoint smoke --report {tmp_path / 'report'} --device cpu --image sha256:000" in said
    assert said.rstrip().endswith("--nodes 2")


def test_without_slurm_several_nodes_are_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("uv", "git"):
        with contextlib.suppress(FileExistsError):
            (folder / program).symlink_to(Path(sys.executable).parent / program)
    command = [sys.executable, "-m", "smokehouse", "smoke", NAME, "--on", "slurm", "--nodes", "2"]
    environ = {**os.environ, "PATH": str(folder), "PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (ended.returncode, "expected sbatch and scontrol, found none; run it on a login node" in ended.stderr) == (2, True)


NODE = """
import os, sys
token = open(os.environ["SMOKEHOUSE_TOKEN_FILE"]).read()
print("node", os.environ["SLURM_NODEID"], len(token), *sys.argv[1:])
"""
JOB = """
import sys
from pathlib import Path
from smokehouse.runs.slurm import Job

token, node = Path(sys.argv[1]), sys.argv[2]
launcher = ("srun", "--ntasks-per-node=1", "--nodes=2")
sys.exit(Job((sys.executable, "-c", node, "--nodes", "2"), launcher, Path("/"), token)())
"""


def test_nodes_of_a_job_get_one_endpoint_and_the_token(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """The endpoint is at the address of the first node, and the token in a file: on no command line."""
    token, script, log = tmp_path / "token", tmp_path / "job.sh", tmp_path / "log"
    token.write_text("0" * 64)
    arguments = shlex.join([sys.executable, "-c", JOB, str(token), NODE])
    script.write_text(f"#!/bin/bash\nexport PYTHONPATH={root / 'src'}\nexec {arguments}\n")
    cluster.run("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--time=1", f"--output={log}", str(script))
    first, second = sorted(line for line in log.read_text().splitlines() if line.startswith("node "))
    assert first.startswith("node 0 64 --nodes 2 --endpoint 127.0.0.1:")
    assert second == first.replace("node 0", "node 1", 1)
