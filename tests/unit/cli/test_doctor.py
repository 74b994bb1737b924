"""`doctor`: the checks of docker/inside/doctor and those of the builder, on this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Index, TestCheckout
from ..installs.test_project import make

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Nov  1 00:00:00 UTC 2022\n"


@pytest.fixture
def sick(checkout: TestCheckout, root: Path) -> TestCheckout:
    """A locked checkout with the programs of images."""
    (checkout.root / "docker").symlink_to(root / "docker")
    checkout.lock()
    return checkout


def findings(checkout: TestCheckout, *, code: int = 0, **environ: str) -> dict[str, str]:
    """The verdict of each check by its text."""
    ended = checkout.run("doctor", "tiny", "--json", **environ)
    assert ended.returncode == code, ended.stderr
    return {finding["text"]: finding["verdict"] for finding in json.loads(ended.stdout)["findings"]}


@pytest.mark.parametrize(
    ("version", "code", "verdict", "text"),
    [
        ("550.54.14", 0, "ok", "NVIDIA driver 550.54.14, 525.60.13 or later is needed"),
        ("470.1", 1, "FAIL", "the environment needs NVIDIA driver 525.60.13 or later, this machine has 470.1; update it"),
        (None, 0, "warn", "NVIDIA driver not found, so only the CPU works; if the machine has a GPU, install NVIDIA's driver"),
    ],
)
def test_the_driver_is_compared(
    sick: TestCheckout, tmp_path: Path, version: str | None, code: int, verdict: str, text: str
) -> None:
    proc = tmp_path / "proc"
    (proc / "driver" / "nvidia").mkdir(parents=True)
    if version:
        (proc / "driver" / "nvidia" / "version").write_text(DRIVER.format(version))
    assert findings(sick, code=code, SMOKEHOUSE_PROC=str(proc))[text] == verdict


def test_what_is_missing_is_named_with_its_remedy(sick: TestCheckout, tmp_path: Path) -> None:
    python, nowhere = Path(sys.executable), tmp_path / "bin"
    nowhere.mkdir()
    (nowhere / "python").symlink_to(python)
    found = findings(sick, PATH=str(nowhere))
    assert found["g++ not found, with which DeepSpeed compiles CPU ops; an environment with --devel has it"] == "warn"
    assert any(text.startswith("C compiler not found") and text.endswith("--devel") for text in found)
    assert found["tiny is not installed; run smokehouse smoke tiny"] == "warn"
    assert found["platform x86_64-manylinux_2_28"] == "ok"
    assert not any("start with" in text for text in found), "remedies of a container"


def test_an_installed_environment_is_found(sick: TestCheckout) -> None:
    assert sick.run("smoke", "tiny").returncode == 0
    assert f"  ok    tiny is installed in {sick.installed}\n" in sick.run("doctor", "tiny").stdout


def test_drift_is_reported_with_its_remedy(sick: TestCheckout, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    assert sick.run("install", "tiny", str(prefix), "--only", "pip").returncode == 0
    assert sick.run("doctor", "tiny", "--prefix", str(prefix)).returncode == 0
    [packages] = prefix.glob("lib/*/site-packages")
    next(packages.glob("beta-*")).rename(packages / "beta-2.1.dist-info")
    for path in packages.glob("gamma*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (packages / "mine-1.0.dist-info").mkdir()
    (packages / "mine-1.0.dist-info" / "RECORD").write_text("")
    (packages / "alpha.py").write_text("")
    ended = sick.run("doctor", "tiny", "--json", "--prefix", str(prefix))
    assert ended.returncode == 1
    failed = [finding["text"] for finding in json.loads(ended.stdout)["findings"] if finding["verdict"] == "FAIL"]
    size = len("def hello(): return 'hello'\ndef main(): print('hello')\n")
    remedy = f"run smokehouse install tiny {prefix} --only pip"
    assert failed[:3] == [
        f"beta: expected 2.0, found 2.1; {remedy}",
        f"mine 1.0: installed, not in the lock; {remedy}",
        f"gamma: expected 1.5, not installed; {remedy}",
    ]
    assert f"alpha.py of alpha: expected {size} bytes, found 0" in failed[3]
    assert sick.run("install", "tiny", str(prefix), "--only", "pip").returncode == 0
    assert sick.run("doctor", "tiny", "--prefix", str(prefix)).returncode == 0


def test_what_a_project_added_is_named_and_in_order(sick: TestCheckout, index: Index, tmp_path: Path) -> None:
    prefix, mine = tmp_path / "p", make(tmp_path / "mine", "delta")
    index.add("delta", "1.0")
    command = ("install", "tiny", str(prefix), "--only", "pip", "--with-project", str(mine))
    assert sick.run(*command).returncode == 0
    report = sick.run("doctor", "tiny", "--prefix", str(prefix))
    assert report.returncode == 0, report.stdout
    assert f"  ok    delta 1.0: added by --with-project {mine}\n" in report.stdout
    assert f"  ok    mine 0.1: added by --with-project {mine}\n" in report.stdout
    [packages] = prefix.glob("lib/*/site-packages")
    shutil.rmtree(next(packages.glob("delta-*")))
    report = sick.run("doctor", "tiny", "--prefix", str(prefix))
    assert report.returncode == 1
    remedy = f"run smokehouse {' '.join(command)}"
    assert f"  FAIL  delta: expected 1.0, added by --with-project {mine}, not installed; {remedy}\n" in report.stdout


def test_the_doctor_of_images_gives_the_remedies_of_containers(root: Path, tmp_path: Path) -> None:
    doctor = [sys.executable, str(root / "docker" / "inside" / "doctor"), "--driver", "525.60.13"]
    ended = subprocess.run(doctor, env={"SMOKEHOUSE_PROC": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    remedy = "if the machine has a GPU, start with --gpus all"
    assert f"  warn  NVIDIA driver not found, so only the CPU works; {remedy}\n" in ended.stdout
