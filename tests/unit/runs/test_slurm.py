"""The verbs that hand work to Slurm, where they never get to it. tests/cluster runs them on a real one."""

from pathlib import Path

import pytest

from smokehouse import runs
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError

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
