"""Both halves in one folder: real packages, a real Python, and everything that can go wrong on the way."""

import json
import subprocess
from pathlib import Path

import pytest

from .channel import Channel
from .conftest import Index, TestHouse
from .halves import lock


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to install."""
    return tmp_path / "hpc home" / "tiny"


def run(python: Path, code: str) -> str:
    """What a program prints."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_both_halves(house: TestHouse, channel: Channel, index: Index, target: Path) -> None:
    lock(house, channel, index)
    ended = house.run("install", "tiny", str(target), "--channel", channel.url)
    assert ended.returncode == 0, ended.stderr
    python = target / "bin" / "python"
    assert ended.stdout == f"{python}\n"
    prefix, version, said = json.loads(
        run(python, "import sys, json, alpha; print(json.dumps([sys.prefix, sys.version, alpha.hello()]))")
    )
    assert (prefix, bool(version), said) == (str(target), True, "hello")
