"""The environment qwen2.5-vl with the real pip half, on a conda half of the tests' own channel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..builder.conftest import TestHouse

NAME = "qwen2.5-vl"


def furnish(place: Path, root: Path, channel: Path, path: str, environ: dict[str, str]) -> TestHouse:
    """Make `place` a house with that environment, locked against `channel` and the machine's own package index.

    Bases and bundles are those of the checkout at `root`, so that a second run downloads nothing.
    """
    unwanted = ("__pycache__", ".*")
    for folder in ("docker", "smoke_tests", "environments"):
        shutil.copytree(root / folder, place / folder, ignore=shutil.ignore_patterns(*unwanted))
    shutil.copy(root / "pyproject.toml", place)
    for folder in ("base", "bundles"):
        (root / "build" / folder).mkdir(parents=True, exist_ok=True)
        (place / "build").mkdir(exist_ok=True)
        (place / "build" / folder).symlink_to(root / "build" / folder)
    folder = place / "environments" / NAME
    written = folder / "environment.yml"
    head, _, pip = written.read_text().partition("dependencies:\n")
    written.write_text(f"{head}dependencies:\n  - python=3.11\n  - cuda-nvcc=12.4\n  - pip:{pip.partition('- pip:')[2]}")
    stack = folder / "stack.toml"
    stack.write_text(re.sub(r"^devel = \[.*?^\]", 'devel = ["cuda-nvcc"]', stack.read_text(), flags=re.MULTILINE | re.DOTALL))
    environ = {name: text for name, text in (os.environ | environ).items() if not name.startswith("PYTHON")}
    environ |= {"PYTHONPATH": str(root / "src"), "SMOKEHOUSE_CHANNEL": str(channel), "PATH": path}
    house = TestHouse(place, environ)
    run(house, "lock", NAME)
    pins = Path("lockfiles", NAME, "requirements.txt")
    assert (place / pins).read_bytes() == (root / pins).read_bytes()  # the pip half is the real one
    return house


def run(house: TestHouse, *arguments: str, timeout: float = 1500, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line, which must end with `code`; images take longer than what else the tests run."""
    command = [sys.executable, "-m", "smokehouse", *arguments]
    ended = subprocess.run(command, cwd=house.root, env=house.environ, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended
