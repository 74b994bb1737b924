"""The verbs that hand work to Slurm, where they never get to it. tests/cluster runs them on a real one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from smokehouse import runs
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
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
