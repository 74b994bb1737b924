"""The verbs that hand work to Slurm, where they never get to it. tests/cluster runs them on a real one."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from smokehouse import runs
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.programs import slurm
from smokehouse.runs.slurm_queue import Allocation, Submitted

NAME = "qwen2.5-vl"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--zero", "3"), "doctor: expected options of --on slurm, found --zero; see "),
        (("--nodes", "0"), "--nodes 0: expected a number from 1 to 10000, found another"),
        (("--container", "pyxis"), "--container pyxis: expected --image with pyxis, found the opposite"),
        (("--image", "env.sif"), "--container none: expected no --image without --container pyxis or apptainer"),
    ],
)
def test_doctor_refuses_what_is_no_option_of_slurm(root: Path, options: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match="^" + expected.replace(".", r"\.")):
        runs.doctor_on(Checkout(root), "slurm", NAME, [*options, "--dry-run"])


def test_doctor_of_an_image_runs_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "4", "--gpus", "8", "--container", "apptainer", "--image", "env.sif", "--measure", "--dry-run"]
    assert runs.doctor_on(Checkout(root), "slurm", NAME, options) is None
    said = capsys.readouterr().out
    assert said.startswith("srun --ntasks-per-node=1 --label --wait=0 --kill-on-bad-exit=0 --nodes=4 sh -c ")
    assert said.rstrip().endswith("env.sif /opt/smokehouse/entrypoint doctor --device cuda --gpus 8 --measure --json")


def test_without_slurm_nothing_is_installed_for_the_doctor(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^--on slurm: expected sbatch and scontrol, found none; run it on a login node"):
        runs.doctor_on(Checkout(root), "slurm", NAME, ["--nodes", "2"])


def test_variables_of_another_job_and_of_the_user_are_hidden_from_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("SLURM_CONF", "SLURM_TASK_PROLOG", "SBATCH_RESERVATION", "SBATCH_MEM_PER_NODE", "SBATCH_ACCOUNT")
    hidden = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_NODE", "SLURM_EXPORT_ENV", "SBATCH_EXPORT", "SBATCH_WAIT")
    for name in (*kept, *hidden, "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "x")
    with slurm.submitting(["partition"]):
        assert [name for name in (*kept, *hidden, "SBATCH_PARTITION") if name in os.environ] == [*kept]
    assert all(os.environ[name] == "x" for name in (*kept, *hidden, "SBATCH_PARTITION"))
    with slurm.submitting():
        assert "SBATCH_PARTITION" in os.environ


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("Resources", "job 7: waits (Resources)\n"),
        (
            "PartitionNodeLimit",
            "job 7: waits (PartitionNodeLimit); it does not start as it is: Ctrl-C cancels it, see scontrol",
        ),
        ("JobHeldUser", "job 7: waits (JobHeldUser); scontrol release 7 starts it\n"),
    ],
)
def test_job_that_waits_says_what_a_person_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str, expected: str
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=7 JobState=PENDING Reason={why}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = SimpleNamespace(job_id="7", paths=SimpleNamespace(result_pickle=tmp_path / "none"))
    assert not Submitted(job, Allocation("smoke", 2, 8, 60, {}), on_slurm=True).has_ended()
    assert expected in capsys.readouterr().err


# As Slurm 22.05 answers of a job that it has ended since a node was lost, or was started again and knew nothing of the job.
SCONTROL = """\
#!/bin/sh
case "$2" in
job) echo "JobId=7 JobName=smoke JobState=NODE_FAIL Reason=None NodeList=gpu[06-07] BatchHost=gpu06" ;;
node) printf 'NodeName=gpu06 State=%s Reason=x\\nNodeName=gpu07 State=IDLE\\n' "$STATE" ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "cause", "remedy"),
    [
        ("DOWN*", "Slurm lost gpu06", "see slurmd there, or give --exclude gpu06"),
        ("IDLE*+DRAIN", "Slurm lost gpu06", "see slurmd there, or give --exclude gpu06"),
        ("IDLE", "Slurm lost one of gpu[06-07], which runs again", "see why in the log of slurmctld, and submit it again"),
    ],
)
def test_lost_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, cause: str, remedy: str) -> None:
    """One that runs again is not: nothing tells which one it was. tests/cluster loses nodes of a real Slurm."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("STATE", state)
    job = Submitted(SimpleNamespace(job_id="7"), Allocation("smoke", 2, 8, 60, {}), on_slurm=True)
    assert (job.cause(), job.remedy()) == (cause, remedy)
    assert job.ended_by_slurm()
