"""Environments with their real PyPI packages, and conda packages from the tests' own channel."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ..unit.conftest import TestCheckout

NAME = "qwen2.5-vl"
_SHOWN = 20  # lines of each stream of a command that failed


def furnish(
    place: Path,
    root: Path,
    channel: Path,
    environ: dict[str, str],
    *,
    names: Sequence[str] = (NAME,),
    shared: Sequence[str] = ("base", "bundles"),
) -> TestCheckout:
    """Make `place` a checkout whose environments `names` are locked from `channel` and the machine's package index.

    Folders of build/ that are `shared` are those of the checkout at `root`, so a second run downloads nothing.
    """
    unwanted = ("__pycache__", ".*")
    for part in ("docker", "smoke_tests", "environments", "packages"):
        shutil.copytree(root / part, place / part, ignore=shutil.ignore_patterns(*unwanted))
    shutil.copy(root / "pyproject.toml", place)
    for part in shared:
        (root / "build" / part).mkdir(parents=True, exist_ok=True)
        (place / "build").mkdir(exist_ok=True)
        (place / "build" / part).symlink_to(root / "build" / part)
    environ = {name: text for name, text in environ.items() if not name.startswith("PYTHON")}
    environ |= {"PYTHONPATH": str(root / "src"), "SMOKEHOUSE_CHANNEL": str(channel)}
    checkout = TestCheckout(place, environ)
    for folder in sorted({_with_packages(place / "environments", name) for name in names}):
        written = folder / "environment.yml"
        head, _, pip = written.read_text().partition("dependencies:\n")
        assert "- pip:" in pip
        written.write_text(f"{head}dependencies:\n  - python=3.11\n  - cuda-nvcc=12.4\n  - pip:{pip.partition('- pip:')[2]}")
        stack = folder / "stack.toml"
        devel = re.compile(r"^devel = \[.*?^\]", flags=re.MULTILINE | re.DOTALL)
        stack.write_text(devel.sub('devel = ["cuda-nvcc"]', stack.read_text()))
    for name in names:
        run(checkout, "lock", name)
        pins = Path("lockfiles", name, "requirements.txt")
        assert (place / pins).read_bytes() == (root / pins).read_bytes()  # the PyPI packages are the real ones
    return checkout


def _with_packages(environments: Path, name: str) -> Path:
    """The folder that has the packages of an environment: its own, or that of the stack that it inherits."""
    stack = tomllib.loads((environments / name / "stack.toml").read_text()).get("stack")
    return environments / "stacks" / stack if stack else environments / name


def locked_bytes(checkout: TestCheckout, name: str = NAME) -> int:
    """The sizes of all downloads that the image of `name` is made of."""
    lock = json.loads((checkout.root / "lockfiles" / name / "lock.json").read_text())
    inside = [entry for entry in lock["conda"] if entry["category"] == "main"] + lock["pip"]
    base = [line.split() for line in (checkout.root / "docker" / "base.lock").read_text().splitlines() if line[0] != "#"]
    return sum(int(entry["size"]) for entry in inside) + sum(int(size) for _, _, _, size, *_ in base)


def run(checkout: TestCheckout, *arguments: str, timeout: float = 1500, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line, which must end with `code`, with more time than other tests need."""
    ended = checkout.run_for(timeout, arguments)
    if ended.returncode != code:  # no assert, whose explanation would have all that was said
        said = [line for stream in (ended.stdout, ended.stderr) for line in stream.splitlines()[-_SHOWN:]]
        how = f"expected exit code {code}, found {ended.returncode}; {free_disk(checkout.root)}"
        raise AssertionError("\n".join([f"{' '.join(arguments)}: {how}", *said]))
    return ended


def free_disk(folder: Path) -> str:
    """Say how much disk is free, since a full one has other faces elsewhere."""
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB of disk free"
