"""`smokehouse smoke NAME --on slurm` on a real Slurm, as a user types it."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.smoke.conftest import NAME

from .slurm_cluster import Cluster

DEADLINE = 400.0
PATIENT = ("--join-timeout", "600")  # no test of a run that is held depends on what else a machine does meanwhile


def start(
    root: Path, cluster: Cluster, report: Path, *options: str, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the verb for a run over two nodes on CPUs."""
    command = [sys.executable, "-m", "smokehouse", "smoke", NAME, "--on", "slurm", "--nodes", "2", "--gpus", "0"]
    return subprocess.Popen(
        [*command, "--report", str(report), *options],
        cwd=root,
        env=cluster.environ | {"PYTHONPATH": str(root / "src")} | dict(environ or {}),
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


@dataclass(frozen=True)
class Hold:
    """Keeps the smoke test off a job's second node until it is released, by a prolog; node 0 waits for it, at its endpoint."""

    environ: dict[str, str]
    file: Path

    def release(self) -> None:
        """Let the second node start."""
        self.file.unlink(missing_ok=True)


@pytest.fixture
def hold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hold]:
    """Yield what holds second nodes, for runs that wait with `PATIENT`; in the end they are released."""
    folder = tmp_path_factory.mktemp("hold")
    prolog, file = folder / "prolog", folder / "held"
    prolog.write_text(f'#!/bin/sh\nwhile [ "$SLURM_NODEID" = 1 ] && [ -e {file} ]; do sleep 0.1; done >&2\n')
    prolog.chmod(0o755)
    file.touch()
    found = Hold({"SLURM_TASK_PROLOG": str(prolog)}, file)
    yield found
    found.release()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what the verb prints until a line contains `text`."""
    assert process.stdout
    while text not in (line := process.stdout.readline()):
        assert line, process.communicate(timeout=DEADLINE)


def number_of(process: subprocess.Popen[str]) -> str:
    """Return the number of the job that the verb has submitted."""
    assert process.stderr
    while not (found := re.search(r"job (\d+): submitted", line := process.stderr.readline())):
        assert line, process.communicate(timeout=DEADLINE)
    return found[1]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the verb's exit code, and the last line of its standard error."""
    said, errors = process.communicate(timeout=DEADLINE)
    assert "Traceback" not in said + errors
    return process.returncode, errors.splitlines()[-1]


def only_job(cluster: Cluster) -> str:
    """Wait for the one job of the cluster, and return its number."""
    cluster.wait_until(lambda: cluster.run("squeue", "-h", "-o", "%A").split(), "a job is submitted", DEADLINE)
    [job] = cluster.run("squeue", "-h", "-o", "%A").split()
    return job


def test_two_nodes_are_proven_together(root: Path, cluster: Cluster, tmp_path: Path, hold: Hold) -> None:
    """While it runs, another one with the same report is refused, and harms nothing."""
    folder = tmp_path / "report"
    options = ("--nproc", "1", "--zero", "3", "--only", "network,collectives", *PATIENT)
    process = start(root, cluster, folder, *options, environ=hold.environ)
    job = number_of(process)
    wait_for_line(process, "waiting at")
    nodes = cluster.nodes(job)
    code, last = ended(start(root, cluster, folder, *options))
    assert code == 2
    assert re.search(rf"found node n\d ended with exit code 2: {folder}: in use by process \d+ on {nodes[0]}; ", last), last
    hold.release()
    said, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said + errors
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["world_size"]) == ("passed", 2)
    assert [node["host"] for node in report["nodes"]] == nodes  # as Slurm calls them
    [collectives] = [check for check in report["checks"] if check["name"] == "collectives"]
    assert sorted(rank["node"] for rank in collectives["ranks"]) == [0, 1]
    assert "PASSED (partial)" in said  # the log of the job is shown
    assert [path.name for path in tmp_path.iterdir()] == ["report"]  # its token and its pickles are gone
    cluster.wait_until(lambda: not cluster.left(), "no process of the job is left")


def no_report(job: str, folder: Path, found: str) -> str:
    """Return what the verb says last of a job that leaves no report."""
    return f"smokehouse: job {job}: expected a report in {folder}, found {found}"


def test_job_that_is_cancelled_before_it_runs(root: Path, drained: Cluster, tmp_path: Path) -> None:
    process = start(root, drained, tmp_path / "report")
    job = only_job(drained)
    drained.run("scancel", job)
    assert ended(process) == (2, no_report(job, tmp_path / "report", "it was cancelled; submit it again"))


def test_jobs_that_slurm_ends(root: Path, cluster: Cluster, tmp_path: Path, hold: Hold) -> None:
    """Two at once: one is cancelled in mid-run, the other reaches its time limit; Slurm's reason is the cause that is named."""
    folders = [tmp_path / "cancelled", tmp_path / "late"]
    cancelled, late = (start(root, cluster, folder, "--time", "7", *PATIENT, environ=hold.environ) for folder in folders)
    jobs = [number_of(process) for process in (cancelled, late)]
    for process in (cancelled, late):
        wait_for_line(process, "waiting at")
    cluster.run("scontrol", "update", f"JobId={jobs[1]}", "EndTime=now+1second")
    cluster.run("scancel", jobs[0])
    assert ended(cancelled) == (2, no_report(jobs[0], folders[0], "it was cancelled; submit it again"))
    found = "its time limit of 7 minutes was reached; give a longer --time"
    assert ended(late) == (2, no_report(jobs[1], folders[1], found))
    cluster.wait_until(lambda: not cluster.left(), "no process of the jobs is left")


def test_node_that_is_lost_in_mid_run(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """The report names it as Slurm does, although srun would wait for it, and the job is not begun again on another node."""
    process = start(root, cluster, tmp_path / "report", "--nproc", "1", "--zero", "3")
    job = number_of(process)
    wait_for_line(process, " checkpoint ")
    lost = cluster.nodes(job)[1]
    cluster.kill_node(lost)
    said, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, said + errors
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["failure"].startswith(f"node 1 ({lost}) was lost: its agent or the network to it is gone; logs: ")
    assert f"smoke: {report['failure']}" in said.splitlines()
    cluster.wait_until(lambda: cluster.state(job) not in ("RUNNING", "COMPLETING"), "the job has ended")
    assert (cluster.field(job, "Restarts"), cluster.state(job) != "PENDING") == ("0", True)


def test_first_node_that_is_lost_in_mid_run(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """With it the batch script is lost, which would have said why: Slurm's own reason is the cause, and the others end."""
    folder = tmp_path / "report"
    process = start(root, cluster, folder, "--nproc", "1", "--zero", "3")
    job = number_of(process)
    wait_for_line(process, " checkpoint ")
    lost = cluster.nodes(job)[0]
    cluster.kill_node(lost)
    found = f"Slurm lost {lost}; see slurmd there, or give --exclude {lost}"
    assert ended(process) == (2, no_report(job, folder, found))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]  # its token is gone
    cluster.wait_until(lambda: not cluster.left(), "no process of the job is left on the other node")
    assert (cluster.state(job), cluster.field(job, "Restarts")) == ("NODE_FAIL", "0")


def test_node_with_another_lock(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """What lies at the path of the lock is another one there, as on a node whose mount is stale."""
    lock = root / "lockfiles" / NAME
    shutil.copytree(lock, tmp_path / "lock")
    with (tmp_path / "lock" / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    cluster.kill_node("n2")
    cluster.start_node("n2", {tmp_path / "lock": lock})
    try:
        cluster.wait_until(lambda: cluster.run("sinfo", "-h", "-o", "%t").split() == ["idle"], "all nodes are idle")
        process = start(root, cluster, tmp_path / "report", "--exclude", "n3", *PATIENT)
        job = number_of(process)
        code, last = ended(process)
    finally:
        cluster.kill_node("n2")
    assert code == 2
    digest = hashlib.sha256((tmp_path / "lock" / "requirements.txt").read_bytes()).hexdigest()[:12]
    assert last.startswith(no_report(job, tmp_path / "report", "node n"))
    assert "node 1 (n2): expected the lock of node 0, requirements.txt " in last
    assert f", found {digest}; install the same lock there; " in last


def test_full_shared_disk(root: Path, cluster: Cluster, tmp_path: Path, hold: Hold) -> None:
    """Nothing can be written to the log any more; why the job failed is said all the same."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "disk", str(disk)], check=True, timeout=60)
    try:
        process = start(root, cluster, disk / "report", *PATIENT, environ=hold.environ)
        job = number_of(process)
        wait_for_line(process, "waiting at")
        with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        hold.release()
        code, last = ended(process)
        assert code == 2
        assert last.startswith(no_report(job, disk / "report", "")), last
        assert ": No space left on device; free disk space" in last
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=60)


def test_doctor_examines_each_node(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """What one finds is listed for it, and one whose preflight cannot even run says so. Each compiles on its own disk."""
    (tmp_path / "empty").mkdir()
    cluster.kill_node("n2")
    cluster.start_node("n2", {tmp_path / "empty": root / "smoke_tests" / "machine"})
    try:
        cluster.wait_until(lambda: cluster.run("sinfo", "-h", "-o", "%t").split() == ["idle"], "all nodes are idle")
        command = [sys.executable, "-m", "smokehouse", "doctor", NAME, "--json", "--on", "slurm"]
        environ = cluster.environ | {"PYTHONPATH": str(root / "src"), "NODE_CACHE": str(tmp_path)}
        ended = subprocess.run(
            [*command, "--options", "--nodes 3 --gpus 8"],
            cwd=root,
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    finally:
        cluster.kill_node("n2")
    assert ended.returncode == 1, ended.stderr
    machines = json.loads(ended.stdout)["machines"]
    assert list(machines) == ["n1", "n2", "n3"]
    [broken] = machines["n2"]
    assert broken["level"] == "fail"
    assert broken["what"].startswith("expected findings, found that node n2 ended with exit code ")
    for node in ("n1", "n3"):
        failures = {one["where"]: one["what"] for one in machines[node] if one["level"] == "fail"}
        assert failures["GPUs"] == "8 were promised (--gpus), 0 are visible"
        caches = {one["where"]: one["what"].split(",")[0] for one in machines[node] if one["level"] == "ok"}
        assert caches["TRITON_CACHE_DIR"] == f"{tmp_path}/smokehouse-0/triton"
        assert caches["TORCH_EXTENSIONS_DIR"] == f"{tmp_path}/smokehouse-0/torch_extensions/smoke"


def test_variables_of_another_job_and_of_the_user_change_nothing(root: Path, cluster: Cluster) -> None:
    """As in a shell of salloc, or with defaults for sbatch that the job cannot be run with."""
    of_another = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "3", "SLURM_NNODES": "1", "SLURM_NODELIST": "n9", "SLURM_HET_SIZE": "2"}
    of_another |= {"SLURM_MEM_PER_NODE": "50", "SLURM_MEM_PER_CPU": "10", "SLURM_EXPORT_ENV": "NONE"}
    of_the_user = {"SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "nowhere", "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-1"}
    command = [sys.executable, "-m", "smokehouse", "doctor", NAME, "--json", "--on", "slurm"]
    ended = subprocess.run(
        [*command, "--options", "--nodes 2 --gpus 0 --partition gpu"],
        cwd=root,
        env=cluster.environ | {"PYTHONPATH": str(root / "src")} | of_another | of_the_user,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert len(json.loads(ended.stdout)["machines"]) == 2


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
    assert said.startswith("srun --ntasks-per-node=1 --label --wait=0 --kill-on-bad-exit=0 --nodes=2 sh -c ")
    assert " smokehouse apptainer exec --bind " in said
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
from smokehouse.runs.slurm_job import Job, srun

token, node = Path(sys.argv[1]), sys.argv[2]
sys.exit(Job((sys.executable, "-c", node, "--nodes", "2"), srun(2), Path("/"), token)().code)
"""


def test_nodes_of_a_job_get_one_endpoint_and_the_token(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """The endpoint is at the address of the first node, and the token in a file: on no command line."""
    token, script, log = tmp_path / "token", tmp_path / "job.sh", tmp_path / "log"
    token.write_text("0" * 64)
    arguments = shlex.join([sys.executable, "-c", JOB, str(token), NODE])
    script.write_text(f"#!/bin/bash\nexport PYTHONPATH={root / 'src'}\nexec {arguments}\n")
    cluster.run("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--time=1", f"--output={log}", str(script))
    first, second = sorted(re.sub(r"^n\d: ", "", line) for line in log.read_text().splitlines() if "node " in line)
    assert first.startswith("node 0 64 --nodes 2 --endpoint 127.0.0.1:")
    assert second == first.replace("node 0", "node 1", 1)
