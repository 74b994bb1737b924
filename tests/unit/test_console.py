"""Sizes and progress, as a person reads them."""

import os
import pty
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from smokehouse import console


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1.25e6, "1.2 MB"),
        (999.9e6, "999.9 MB"),
        (1e9, "1.0 GB"),
        (2e15, "2000000.0 GB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert console.size(count) == text


@pytest.mark.parametrize(
    ("total", "unit", "lines"),
    [
        (3000, "bytes", ["fetching: 1.0 kB of 3.0 kB", "fetching: 3.0 kB of 3.0 kB"]),
        (0, "items", ["fetching: 1000", "fetching: 3000"]),
    ],
)
def test_progress_without_a_terminal_is_a_line_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int, unit: Any, lines: list[str]
) -> None:
    moments = iter([0.0, 10.0, 10.0, 15.0, 20.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    with console.progress("fetching", total, unit) as advance:
        for _ in range(3):
            advance(1000)
    assert capfd.readouterr().err.splitlines() == [f"smokehouse: {line}" for line in lines]


def test_a_heartbeat_without_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.001)
    said = threading.Event()
    monkeypatch.setattr(console, "status", lambda text: said.set() if text.startswith("compiling, for ") else None)
    before = threading.active_count()
    with console.heartbeat("compiling"):
        assert said.wait(10)
    assert threading.active_count() == before


def test_progress_without_a_terminal_is_silent_at_first(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("fetching", 10, "bytes") as advance:
        advance(10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "shown"), [("bytes", "2.0/2.0 kB"), ("items", "2000/2000")])
def test_progress_at_a_terminal(unit: str, shown: str) -> None:
    master, slave = pty.openpty()
    code = f"from smokehouse import console\nwith console.progress('linking', 2000, {unit!r}) as advance: advance(2000)"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=slave, env=environ) as process:
        os.close(slave)
        text = b""
        while chunk := _read(master):
            text += chunk
    os.close(master)
    assert process.returncode == 0
    assert b"linking" in text
    assert shown.encode() in text


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux answers EIO when the other end is closed
        return b""
