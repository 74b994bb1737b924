"""The smoke test of what somebody else installed: which Python it runs with, and what is refused before it starts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.runs import report

from ...integration import reports
from ..channel import Channel
from ..conftest import TestCheckout


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A virtual environment of somebody else, with what the stand-in for the smoke test imports."""
    folder = tmp_path / "theirs"
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "alpha.py").write_text("")
    return folder


def files(folder: Path) -> set[tuple[str, int]]:
    """Every file of a folder and when it was written."""
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("how", ["--prefix", "--python", "PATH"])
def test_the_smoke_test_runs_with_their_python_and_leaves_no_file(checkout: TestCheckout, foreign: Path, how: str) -> None:
    before = files(foreign)
    python = foreign / "bin" / "python"
    options = {"--prefix": ["--prefix", str(foreign)], "--python": [f"--python={python}"], "PATH": []}[how]
    ended = checkout.run("smoke", *options, "--here", "tiny", "--zero", "3", PATH=f"{python.parent}:/usr/bin:/bin")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["python"] == str(python)
    assert Path(said["alpha"]).is_relative_to(foreign)
    assert said["path"] is None
    report = str(checkout.root / "build" / "smoke" / "here-zero3")
    assert said["argv"] == ["--here=tiny", "--report", report, "--zero", "3"]
    assert files(foreign) == before


def test_without_a_family_the_smoke_test_chooses(checkout: TestCheckout, foreign: Path) -> None:
    ended = checkout.run("smoke", "--here", "--prefix", str(foreign), "--report", "mine")
    assert json.loads(ended.stdout)["argv"] == ["--here", "--report", "mine"]


def test_options_are_refused_before_anything_starts(checkout: TestCheckout, foreign: Path) -> None:
    said = checkout.refused("smoke", "--here", "--prefix", str(foreign), "--nonsense")
    assert said == "smokehouse: smoke_tests: --nonsense is no option; see --help"


def test_a_python_that_cannot_be_used_is_refused(checkout: TestCheckout, foreign: Path, tmp_path: Path) -> None:
    program = tmp_path / "python"
    old = f"#!{sys.executable}\nprint('[[3, 9], \"/\"]')\n"
    remedy = "see smokehouse smoke --help"
    for text, expected in (
        ("#!/bin/sh\nexit 1\n", f"{program}: expected a Python interpreter, found another program; {remedy}"),
        ("no program", f"{program}: expected a Python interpreter, found another program; {remedy}"),
        (old, f"{program}: expected Python 3.10 or later, found 3.9; give another environment"),
    ):
        program.write_text(text)
        program.chmod(0o755)
        assert checkout.refused("smoke", "--here", "--python", str(program)) == f"smokehouse: {expected}"
    none = f"expected a Python interpreter, found none; {remedy}"
    assert checkout.refused("smoke", "--here", "--prefix", str(tmp_path)) == f"smokehouse: {tmp_path}/bin/python: {none}"
    both = checkout.refused("smoke", "--here", "--prefix", str(foreign), "--python", str(program))
    assert both == f"smokehouse: smoke: expected --python or --prefix, found both; give one of {program} and {foreign}"
    assert "expected a python on PATH, found none" in checkout.refused("smoke", "--here", PATH="/nowhere")


def test_python_belongs_to_here(checkout: TestCheckout, foreign: Path) -> None:
    said = checkout.refused("smoke", "tiny", "--python", f"{foreign}/bin/python")
    assert said == "smokehouse: --python: expected --here with it, which proves what is installed without a lock; add --here"


def test_an_installed_prefix_of_ours_is_proven_with_its_lock(checkout: TestCheckout, channel: Channel, tmp_path: Path) -> None:
    """`smoke NAME --prefix DIR`: what `install` made, as it is locked now; nothing is installed for it."""
    checkout.lock("--channel", str(channel.folder))
    prefix = tmp_path / "prefix"
    missing = f"smokehouse: {prefix}: expected an installation of tiny, .smokehouse.json not found or of another; "
    assert checkout.refused("smoke", "tiny", "--prefix", str(prefix)) == f"{missing}run smokehouse install tiny {prefix}"
    assert checkout.run("install", "tiny", str(prefix), "--channel", channel.url).returncode == 0
    ended = checkout.run("smoke", "tiny", "--prefix", str(prefix), "--zero", "3")
    said = json.loads(ended.stdout)
    assert said["python"] == str(prefix / "bin" / "python")
    assert said["argv"][:2] == ["--environment", "tiny"]
    assert said["argv"][-2:] == ["--zero", "3"]
    assert not checkout.installed.exists()
    both = checkout.refused("smoke", "tiny", "--prefix", str(prefix), "--bundle", "somewhere")
    assert both.startswith("smokehouse: smoke: expected --prefix or --bundle, found both; ")
    checkout.edit(checkout.environment, "      - beta\n", "")
    checkout.lock("--channel", str(channel.folder))
    older = f"smokehouse: {prefix}: expected tiny as it is locked now, found an older installation; "
    assert checkout.refused("smoke", "tiny", "--prefix", str(prefix)) == f"{older}run smokehouse install tiny {prefix}"


def test_a_report_without_a_lock_proves_nothing_to_the_builder(root: Path) -> None:
    """Pages, publications and attestations read reports with one function, which refuses it."""
    found = reports.report(f"sha256:{'d' * 64}", "a" * 64, environment="here")
    packages = {"prefix": "/theirs", "packages": {"torch": "2.6.0"}, "notes": []}
    data = json.dumps(found | {"lock": None, "installed": packages}).encode()
    with pytest.raises(UserError) as raised:
        report.parse(Checkout(root), data, "report.json", "run it again")
    expected = "report.json: expected a report of a lock, found one of /theirs without a lock, as --here makes; run it again"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    "changes",
    [{"lock": None}, {"installed": {"prefix": "/", "packages": {}, "notes": []}}, {"lock": None, "installed": {"prefix": "/"}}],
)
def test_a_report_has_either_a_lock_or_what_is_installed(root: Path, changes: dict[str, Any]) -> None:
    data = json.dumps(reports.report(f"sha256:{'d' * 64}", "a" * 64) | changes).encode()
    with pytest.raises(UserError, match=r"^report\.json: invalid report: "):
        report.parse(Checkout(root), data, "report.json", "run it again")
