"""cluster/slurm/train.sbatch on a real Slurm, as a user submits it: each job ends as it should, and leaves nothing running."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .slurm_cluster import NODES, Cluster

# Ranks write what they do, and wait at step 3 until they are told to go on or to stop; rank 0 saves.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append("signal"))
state = folder / "state.json"
step = json.loads(state.read_text())["step"] if state.exists() else 0
began = step

def say(text):
    with (folder / f"said-{rank}").open("a") as file:
        file.write(f"{text} on {os.environ['SLURMD_NODENAME']}\\n")

say(f"begin at {step}")
while step < 5:
    step += 1
    if step == 3 and not began:
        say("waits")
        while not (Path(os.environ["SIGNAL_FILE"]).exists() and told) and not (folder / "go").exists():
            time.sleep(0.05)
        if told:
            if os.environ.get("DOES_NOT_SAVE"):
                sys.exit(3)
            if rank == 0:
                state.write_text(json.dumps({"step": step}))
            say("saved")
            sys.exit(0)
say("end")
"""


class Jobs:
    """Submits train.sbatch in a folder of its own."""

    def __init__(self, root: Path, cluster: Cluster, folder: Path, prefix: Path) -> None:
        self.script, self.cluster, self.folder, self.prefix = root / "cluster/slurm/train.sbatch", cluster, folder, prefix
        (folder / "program.py").write_text(PROGRAM)

    def submit(self, *options: str, output: Path | None = None, inherited: str = "ALL,", **variables: str) -> str:
        """Submit a job over two nodes, and return its number."""
        exported = {"PREFIX": str(self.prefix), "PREFLIGHT": "none"} | variables
        command = ["sbatch", "--parsable", f"--chdir={self.folder}", *options, f"--export={inherited}{_joined(exported)}"]
        command += [str(self.script), str(self.folder / "program.py"), str(output or self.folder)]
        return self.cluster.run(*command, environ=variables).strip()

    def said(self, rank: int, output: Path | None = None) -> list[str]:
        """Return what a rank has said so far."""
        file = (output or self.folder) / f"said-{rank}"
        return file.read_text().splitlines() if file.exists() else []

    def log(self, job: str) -> str:
        """Return the output of a job."""
        file = self.folder / f"slurm-{job}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def wait_for(self, job: str, *states: str) -> None:
        """Wait until a job has one of the states."""
        with contextlib.suppress(RuntimeError):
            self.cluster.wait_until(lambda: self.cluster.state(job) in states, f"job {job} is {' or '.join(states)}")
        assert self.cluster.state(job) in states, (self.cluster.state(job), self.log(job), self.cluster.said())

    def wait_until_waiting(self, output: Path | None = None) -> None:
        """Wait until both ranks are in the middle of training."""
        waiting = "both ranks wait"
        self.cluster.wait_until(lambda: all(any("waits" in s for s in self.said(r, output)) for r in (0, 1)), waiting)


def _joined(variables: dict[str, str]) -> str:
    """Return names for --export; values with commas have to be in the environment."""
    return ",".join(f"{name}={value}" for name, value in variables.items() if "," not in value and " " not in value)


@pytest.fixture
def jobs(root: Path, cluster: Cluster, tmp_path: Path, prefix: Path) -> Iterator[Jobs]:
    """Yield what submits jobs; after each test nothing of them is left."""
    folder = tmp_path / "work"
    folder.mkdir()
    yield Jobs(root, cluster, folder, prefix)
    cluster.run("scancel", "--full", "--user=root")
    cluster.wait_until(lambda: not cluster.left(), "no process of a job is left")


def test_job_runs_on_all_its_nodes(jobs: Jobs) -> None:
    (jobs.folder / "go").touch()
    job = jobs.submit()
    jobs.wait_for(job, "COMPLETED")
    assert [jobs.said(rank) for rank in (0, 1)] == [
        [f"{text} on {node}" for text in ("begin at 0", "waits", "end")] for node in jobs.cluster.nodes(job)
    ]


def test_before_its_time_limit_a_job_saves_and_is_requeued(jobs: Jobs) -> None:
    """The signal is sent as Slurm sends it before the limit: to the batch script alone."""
    job = jobs.submit()
    jobs.wait_until_waiting()
    jobs.cluster.run("scancel", "--batch", "--signal=USR1", job)
    jobs.wait_for(job, "COMPLETED")
    for rank in (0, 1):
        assert [said.split(" on ")[0] for said in jobs.said(rank)] == ["begin at 0", "waits", "saved", "begin at 3", "end"]
    assert jobs.cluster.field(job, "Restarts") == "1"
    assert "train.sbatch: requeued as restart 1" in jobs.log(job)
    assert not [*jobs.folder.glob("stop-*")]


def test_job_that_does_not_save_is_not_requeued(jobs: Jobs) -> None:
    job = jobs.submit(DOES_NOT_SAVE="yes")
    jobs.wait_until_waiting()
    jobs.cluster.run("scancel", "--batch", "--signal=USR1", job)
    jobs.wait_for(job, "FAILED")
    log = jobs.log(job)
    assert "Exited with exit code 3" in log
    # 143 where Slurm ends the other node before that has ended itself; srun returns the higher code.
    assert re.search("expected training to save a checkpoint and exit with 0, found (3|143); not requeued", log)
    assert jobs.cluster.field(job, "Restarts") == "0"


def test_node_that_fails_its_preflight_is_excluded(jobs: Jobs) -> None:
    (jobs.folder / "go").touch()
    sick = jobs.folder / "sick"  # the first node of the job, whichever that is
    write = f'(set -C; [ "$SLURM_NODEID" != 0 ] || echo "$SLURMD_NODENAME" > {sick}) 2> /dev/null'
    job = jobs.submit(PREFLIGHT=f'{write}; until [ -s {sick} ]; do sleep 0.1; done; [ "$SLURMD_NODENAME" != "$(cat {sick})" ]')
    jobs.wait_for(job, "COMPLETED")
    bad = sick.read_text().strip()
    assert f"train.sbatch: preflight failed on {bad}; to submit the job without: sbatch --exclude={bad}" in jobs.log(job)
    assert jobs.cluster.field(job, "ExcNodeList") == bad
    assert [jobs.said(rank)[-1] for rank in (0, 1)] == [f"end on {node}" for node in NODES if node != bad]
    assert [len(jobs.said(rank)) for rank in (0, 1)] == [3, 3]  # nothing was trained before


def test_job_that_was_requeued_too_often(jobs: Jobs) -> None:
    job = jobs.submit("--nodes=1", PREFLIGHT="false", MAX_RESTARTS="0")
    jobs.wait_for(job, "FAILED")
    assert "train.sbatch: restart 1: expected 0 at most (MAX_RESTARTS); see why it does not get further" in jobs.log(job)


def test_one_job_of_an_array_is_requeued_alone(jobs: Jobs) -> None:
    """The last one, whose number is the array's."""
    (jobs.folder / "go").touch()
    once = jobs.folder / "once"
    write = f'[ "$SLURM_ARRAY_TASK_ID" = 0 ] || ! mkdir {once} 2> /dev/null'
    wait = f"until [ -e {once} ]; do sleep 0.1; done"  # so that both run when one is requeued
    array = jobs.submit("--array=0-1", "--nodes=1", PREFLIGHT=f"{write} && {wait}")
    for task in (0, 1):
        jobs.wait_for(f"{array}_{task}", "COMPLETED")
    assert [jobs.cluster.field(f"{array}_{task}", "Restarts") for task in (0, 1)] == ["0", "1"]
    assert "train.sbatch: restart 1; it ran on n" in jobs.log(f"{array}_1")


@pytest.mark.parametrize("options", [("--ntasks-per-node=4", "--gpus-per-task=1"), ("--job-name=a/b c",)])
def test_options_of_sbatch_that_change_nothing(jobs: Jobs, options: tuple[str, ...]) -> None:
    (jobs.folder / "go").touch()
    job = jobs.submit(*options, NPROC="1")
    jobs.wait_for(job, "COMPLETED")
    assert [len(jobs.said(rank)) for rank in (0, 1)] == [3, 3]


def test_variables_that_are_exported_without_all(jobs: Jobs) -> None:
    (jobs.folder / "go").touch()
    job = jobs.submit(inherited="")
    jobs.wait_for(job, "COMPLETED")
    assert [jobs.said(rank)[-1].split(" on ")[0] for rank in (0, 1)] == ["end", "end"]


def test_job_that_another_job_submits(jobs: Jobs) -> None:
    """It has the other's variables, of an array that was requeued, and none of them counts."""
    (jobs.folder / "go").touch()
    of_another: dict[str, Any] = {
        "SLURM_RESTART_COUNT": "21",
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_HET_SIZE": "2",
        "SLURM_MEM_PER_NODE": "1000000",
        "SIGNAL_FILE": str(jobs.folder / "stop-1"),
        "DEFAULT_SIGNAL_FILE": str(jobs.folder / "stop-1"),
    }
    (jobs.folder / "stop-1").touch()
    job = jobs.submit(**of_another)
    jobs.wait_for(job, "COMPLETED")
    assert [len(jobs.said(rank)) for rank in (0, 1)] == [3, 3]
    assert "restart" not in jobs.log(job)
    assert (jobs.folder / "stop-1").exists()


def test_training_that_submits_the_next_job_has_no_address_of_this_one(jobs: Jobs) -> None:
    (jobs.folder / "program.py").write_text("import os; print(*(os.environ.get(n) for n in ('FIRST', 'PORT', 'NPROC')))")
    job = jobs.submit(NPROC="1")
    jobs.wait_for(job, "COMPLETED")
    assert jobs.log(job).count("None None None") == 2


def test_groups_of_nodes_are_refused(jobs: Jobs) -> None:
    job = jobs.submit("--nodes=1", ":", "--nodes=1")
    jobs.wait_for(job, "FAILED")
    assert "train.sbatch: expected one group of nodes, found a heterogeneous job" in jobs.log(job)


def test_time_that_is_up_before_training_begins(jobs: Jobs) -> None:
    """Slurm's signal before the limit is for training alone; a script that it kills says nothing."""
    checking, checked = jobs.folder / "checking", jobs.folder / "checked"
    job = jobs.submit(PREFLIGHT=f"touch {checking}; until [ -e {checked} ]; do sleep 0.1; done")
    jobs.cluster.wait_until(checking.exists, "the preflight runs")
    os.kill(jobs.cluster.batch_script(job), signal.SIGUSR1)  # as Slurm does, which says not when it has
    checked.touch()
    jobs.wait_for(job, "FAILED")
    assert "train.sbatch: expected training to begin before the signal" in jobs.log(job)
    assert (jobs.said(0), jobs.cluster.field(job, "Restarts")) == ([], "0")


def test_too_few_nodes_that_pass(jobs: Jobs) -> None:
    """A job that would wait for ever is not requeued."""
    job = jobs.submit(PREFLIGHT="false")
    jobs.wait_for(job, "FAILED")
    bad = ",".join(jobs.cluster.nodes(job))
    assert f"train.sbatch: preflight failed on {bad}; to submit the job without: sbatch --exclude={bad}" in jobs.log(job)
    assert "train.sbatch: too few nodes are left in gpu" in jobs.log(job)
    assert jobs.said(0) == []


def test_job_that_is_cancelled_leaves_nothing(jobs: Jobs) -> None:
    job = jobs.submit()
    jobs.wait_until_waiting()
    assert jobs.cluster.left()
    jobs.cluster.run("scancel", job)
    jobs.wait_for(job, "CANCELLED")
    jobs.cluster.wait_until(lambda: not jobs.cluster.left(), "no process of the job is left")


def test_first_node_that_is_lost(jobs: Jobs) -> None:
    """The batch script is lost with it. Slurm requeues the job, which runs on the others; test_training.py loses another."""
    job = jobs.submit()
    jobs.wait_until_waiting()
    [lost, left] = jobs.cluster.nodes(job)
    jobs.cluster.kill_node(lost)
    (jobs.folder / "go").touch()
    jobs.cluster.wait_until(lambda: jobs.cluster.field(job, "Restarts") == "1", "the job is requeued")
    jobs.wait_for(job, "COMPLETED")
    assert [jobs.said(rank)[-1] for rank in (0, 1)] == [f"end on {node}" for node in NODES if node != lost]
    ran = rf"n\[{lost[1]}[-,]{left[1]}\]"
    assert re.search(
        rf"^train\.sbatch: restart 1; it ran on {ran}; {lost} is down\*: Not responding$", jobs.log(job), re.MULTILINE
    )


def test_two_jobs_at_once_and_an_array(jobs: Jobs) -> None:
    """Each has a port, a log and an output of its own, though they share nodes."""
    outputs = [jobs.folder / f"output-{number}" for number in range(2)]
    for output in outputs:
        output.mkdir()
    numbers = [jobs.submit("--ntasks-per-node=1", output=output) for output in outputs]
    for output in outputs:
        jobs.wait_until_waiting(output)
    for output in outputs:
        (output / "go").touch()
    for job in numbers:
        jobs.wait_for(job, "COMPLETED")
    (jobs.folder / "go").touch()
    array = jobs.submit("--array=0-1", "--nodes=1")
    for task in (0, 1):
        jobs.wait_for(f"{array}_{task}", "COMPLETED")
    assert len(jobs.said(0)) == 6
    assert not jobs.cluster.left()


def test_full_disk_fails_the_job_on_all_nodes(jobs: Jobs) -> None:
    """The rank that cannot write ends, and with it the others, which would wait for it."""
    full = jobs.folder / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        (jobs.folder / "program.py").write_text(
            PROGRAM.replace('say("waits")', 'say("waits"); rank == 1 and (folder / "big").write_bytes(bytes(1 << 20))')
        )
        job = jobs.submit(output=full)
        jobs.wait_for(job, "FAILED")
        assert "No space left on device" in jobs.log(job)
        assert jobs.cluster.field(job, "Restarts") == "0"
        jobs.cluster.wait_until(lambda: not jobs.cluster.left(), "no process of the job is left")
    finally:
        subprocess.run(["umount", str(full)], check=True)


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ([], {}, "expected what torchrun is to run, found nothing; give a Python file and its arguments"),
        (["x.py"], {"PREFIX": "/nowhere"}, "PREFIX=/nowhere: expected an installed environment, found no bin/python"),
        (["x.py"], {"PREFIX": sys.prefix}, "SMOKEHOUSE=/nowhere: expected a checkout of Smokehouse, found none; set it, or"),
        (["x.py"], {"LAUNCHER": "apptainer"}, "LAUNCHER=apptainer: expected an image, found none; set IMAGE"),
        (["x.py"], {"LAUNCHER": "docker"}, "LAUNCHER=docker: expected prefix, apptainer or pyxis, found another"),
        (["x.py"], {"LAUNCHER": "pyxis", "IMAGE": "x"}, "expected a job of Slurm, found none; submit it: sbatch"),
    ],
)
def test_what_cannot_run_is_refused(root: Path, arguments: list[str], variables: dict[str, str], expected: str) -> None:
    script = root / "cluster/slurm/train.sbatch"
    ended = subprocess.run(
        ["bash", str(script), *arguments],
        env=os.environ | {"SLURM_SUBMIT_DIR": "/nowhere"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"train.sbatch: {expected}")
