"""docs/how-to/new-model.md, as it is written there: from the name of a model that no environment is for to its page."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout

from .conftest import NAME, Starter

PAGE = "docs/how-to/new-model.md"
LIKE = "yi-coder"


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A checkout with what the walk-through needs, where nothing is installed."""
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("smoke_tests", f"environments/{LIKE}", "environments/stacks", f"lockfiles/{LIKE}", "packages"):
        shutil.copytree(root / part, clone / part, symlinks=True, ignore=ignore)
    shutil.copytree(root / "src/smokehouse_loader", clone / "src/smokehouse_loader", ignore=ignore)
    for file in (
        f"docs/environments/{LIKE}.json",
        f"docs/environments/{LIKE}.md",
        "pyproject.toml",
        "lockfiles/tools.txt",
        "README.md",
    ):
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / file, clone / file)
    readme = clone / "README.md"  # without the output of a run of an environment that is not there
    readme.write_text(re.sub(r"<!-- run (\S+) -->.*?<!-- /run \1 -->", "", readme.read_text(), flags=re.DOTALL))
    return clone


def commands(root: Path) -> list[list[str]]:
    """Return the commands of the page, as arguments of the builder."""
    return [shlex.split(line) for line in re.findall(r"(?m)^    nox -s (.*)$", (root / PAGE).read_text())]


def builder(root: Path, clone: Path, *arguments: str) -> str:
    """Run a verb in the clone, which must succeed, and return what it prints."""
    environ = {**os.environ, "PYTHONPATH": str(root / "src"), "UV_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "smokehouse", *arguments], cwd=clone, env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_name_leads_to_a_certificate(root: Path, clone: Path, tmp_path: Path, lasting: Starter) -> None:
    new, *_, proof, page, _ = ([verb, *rest] for verb, dashes, *rest in commands(root) if dashes == "--")
    name = new[1]
    assert name not in Checkout(root).environments()
    assert not (root / "smoke_tests" / "families" / f"{name}.py").exists()
    builder(root, clone, *new)
    assert proof == ["smoke", name]
    # Its packages are those of an environment that is installed.
    ended = InClone(clone, tmp_path, name, lasting.python).run(report=tmp_path / "report")
    assert ended.code == 0, ended.stdout + ended.stderr
    assert page[:2] == ["docs", name]
    builder(root, clone, "docs", name, "--report", str(ended.folder / "report.json"))
    text = (clone / "docs" / "environments" / f"{name}.md").read_text()
    assert re.search(r"\| proven on \| (cpu, gloo, fp32|cuda, )", text)
    assert f"docs/environments/{name}.md" in (clone / "README.md").read_text()
    report = json.loads((clone / "docs" / "environments" / f"{name}.json").read_text())
    assert report["environment"] == name
    assert {check["verdict"] for check in report["checks"]} <= {"passed", "known", "observed"}


class InClone(Starter):
    """A starter of runs in another checkout, with a Python that is installed."""

    def __init__(self, root: Path, folder: Path, name: str, python: Path) -> None:
        self.root, self.folder, self.name, self.python = root, folder, name, python
        self.started = []
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def test_the_environment_of_the_walk_through_has_the_packages_that_its_test_uses(root: Path) -> None:
    one, other = (json.loads((root / "lockfiles" / name / "lock.json").read_text()) for name in (NAME, LIKE))
    assert one["pip"] == other["pip"]
