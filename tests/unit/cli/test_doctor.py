"""`doctor`: the preflight of the smoke tests and the checks of the builder, on this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import stubs

from ..conftest import Index, TestCheckout
from ..installs.test_project import make


@pytest.fixture
def sick(checkout: TestCheckout) -> TestCheckout:
    """A locked checkout."""
    checkout.lock()
    return checkout


def findings(checkout: TestCheckout, *, code: int | None = None, **environ: str) -> dict[str, list[dict[str, Any]]]:
    """The findings by where they are; `code` is the exit code, that of the findings if None."""
    ended = checkout.run("doctor", "tiny", "--json", **environ)
    found = json.loads(ended.stdout)["findings"]
    expected = int(any(finding["level"] == "fail" for finding in found)) if code is None else code
    assert ended.returncode == expected, ended.stderr
    return {finding["where"]: [other for other in found if other["where"] == finding["where"]] for finding in found}


@pytest.mark.parametrize(
    ("driver", "cuda", "level", "text"),
    [
        ("550.54.14", 12040, "ok", "550.54.14, supports CUDA 12.4, 525.60.13 or later is needed"),
        # Minor-version compatibility: an older release of the same major one.
        ("525.60.13", 12000, "ok", "525.60.13, supports CUDA 12.0, 525.60.13 or later is needed"),
        (
            "470.1",
            11040,
            "fail",
            "the environment with CUDA 12.4 needs 525.60.13 or later, found 470.1, which supports CUDA 11.4",
        ),
        # Forward compatibility: a libcuda that is newer than the driver.
        ("470.1", 12040, "ok", "470.1, supports CUDA 12.4, with CUDA 12.4 by cuda-compat"),
    ],
)
def test_the_driver_is_compared(sick: TestCheckout, tmp_path: Path, driver: str, cuda: int, level: str, text: str) -> None:
    libraries, devices = stubs.build(tmp_path / "stubs"), tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    environ = stubs.environ(libraries, driver=driver, cuda=cuda) | {"SMOKEHOUSE_DEV": str(devices)}
    [found] = findings(sick, code=int(level == "fail"), **environ)["NVIDIA driver"]
    assert (found["level"], found["what"]) == (level, text)


def test_without_a_driver_only_the_cpu_works(sick: TestCheckout, tmp_path: Path) -> None:
    [found] = findings(sick, SMOKEHOUSE_PROC=str(tmp_path), SMOKEHOUSE_DEV=str(tmp_path))["NVIDIA driver"]
    assert found["what"] == "not found, so only the CPU works"
    assert found["fix"] == "if the machine has a GPU, install the driver"


def test_what_is_missing_is_named_with_its_remedy(sick: TestCheckout, tmp_path: Path) -> None:
    nowhere = tmp_path / "bin"
    nowhere.mkdir()
    found = findings(sick, PATH=str(nowhere))
    assert found["g++"][0]["what"] == "not found, with which DeepSpeed compiles CPU ops"
    assert found["C compiler"][0]["what"].startswith("not found, and triton")
    assert found["C compiler"][0]["fix"].startswith("install gcc, or an environment with --devel")
    assert found["tiny"][0] == {"level": "warn", "what": "not installed", "where": "tiny", "fix": "run smokehouse smoke tiny"}
    assert found["platform"][0]["what"] == "x86_64-manylinux_2_28"
    assert not [one for listed in found.values() for one in listed if "start with" in one["fix"]], "remedies of a container"


def test_an_installed_environment_is_found_and_asked(sick: TestCheckout) -> None:
    assert sick.run("smoke", "tiny").returncode == 0
    assert f"  ok    tiny: installed in {sick.installed}\n" in sick.run("doctor", "tiny").stdout
    # Its Python runs the preflight, and so sees what is installed in it.
    packages = next(sick.installed.glob("lib/python3.*/site-packages"))
    (packages / "triton-3.2.0.dist-info").mkdir()
    (packages / "triton-3.2.0.dist-info" / "METADATA").write_text("Name: triton\nVersion: 3.2.0\n")
    [found] = findings(sick, PATH=str(sick.root))["C compiler"]
    assert found["what"].startswith("not found, and triton 3.2.0 compiles C")


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
    found = [one for one in json.loads(ended.stdout)["findings"] if one["level"] == "fail"]
    failed = [f"{one['where']}: {one['what']}; {one['fix']}" for one in found]
    size = len("def hello(): return 'hello'\ndef main(): print('hello')\n")
    remedy = f"run smokehouse install tiny {prefix} --only pip"
    assert failed[:3] == [
        f"beta: expected 2.0, found 2.1; {remedy}",
        f"mine: 1.0 is installed, not in the lock; {remedy}",
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
    assert f"  ok    delta: 1.0, added by --with-project {mine}\n" in report.stdout
    assert f"  ok    mine: 0.1, added by --with-project {mine}\n" in report.stdout
    [packages] = prefix.glob("lib/*/site-packages")
    shutil.rmtree(next(packages.glob("delta-*")))
    report = sick.run("doctor", "tiny", "--prefix", str(prefix))
    assert report.returncode == 1
    remedy = f"run smokehouse {' '.join(command)}"
    assert f"  FAIL  delta: expected 1.0, added by --with-project {mine}, not installed; {remedy}\n" in report.stdout
