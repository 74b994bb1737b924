"""Tests that interrupt what they start work under a parent that ignores signals, such as a shell's background job."""

import subprocess
import sys
from pathlib import Path

import pytest

PRINT = "import signal; print(*[signal.getsignal(number) is signal.SIG_IGN for number in (2, 15, 1, 3, 17)])"
TEST = f"""
import subprocess, sys
def test_child():
    printed = subprocess.run([sys.executable, "-c", {PRINT!r}], capture_output=True, text=True).stdout
    assert printed == "False False False False False\\n"
"""


@pytest.mark.parametrize("ignored", ["", "trap '' INT TERM HUP QUIT CHLD; "])
def test_children_of_tests_have_default_dispositions(root: Path, tmp_path: Path, ignored: str) -> None:
    (tmp_path / "conftest.py").write_text((root / "tests" / "conftest.py").read_text())
    (tmp_path / "test_child.py").write_text(TEST)
    command = f'{ignored}exec "{sys.executable}" -m pytest -q -p no:cacheprovider "{tmp_path}"'
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout
