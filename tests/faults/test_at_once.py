"""Two commands at once in one place: the second waits for the first, and both find the same whole thing."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smoke_tests.options import InputError
from smoke_tests.report_folder import report_folder

from ..unit.channel import Channel
from ..unit.conftest import Index, TestCheckout
from ..unit.test_killed import snapshot

# Stops a command before its first system call of a kind, until it is continued.
STOP = """
import os, signal, sys
event = os.environ.pop("STOPPED_BEFORE", "")

def _hook(found, _arguments):
    global event
    if event and found == event:
        event = ""
        os.kill(os.getpid(), signal.SIGSTOP)

if event:
    sys.addaudithook(_hook)
"""
ALPHA = "alpha-1.0-py3-none-any.whl"
Record = Callable[[str, object], None]


def at_once(checkout: TestCheckout, index: Index, *command: str, again: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
    """Start a command, and it or `again` while the index holds it up; return output and errors of both once they have ended."""
    file, gate = index.files[ALPHA], threading.Event()
    file.requested.clear()
    file.gate = gate
    first = checkout.start(*command)
    assert file.requested.wait(60)
    second = checkout.start(*(again or command))
    waits_for(second, first)
    gate.set()
    ended = [first.communicate(timeout=120), second.communicate(timeout=120)]
    assert [process.returncode for process in (first, second)] == [0, 0], ended
    return ended


def stopped(checkout: TestCheckout, folder: Path, event: str, *command: str) -> list[subprocess.CompletedProcess[str]]:
    """Start a command that stops before `event`, and the same again, and return how both ended once the first went on."""
    (folder / "hook").mkdir(parents=True)
    (folder / "hook" / "sitecustomize.py").write_text(STOP)
    variables = {"STOPPED_BEFORE": event, "PYTHONPATH": f"{folder / 'hook'}:{checkout.environ['PYTHONPATH']}"}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1"}  # otherwise the first file that is renamed is one of bytecode
    first = replace(checkout, environ=checkout.environ | variables).start(*command)
    second = None
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        second = checkout.start(*command)
        waits_for(second, first)
    finally:
        first.send_signal(signal.SIGCONT)
        ended = [
            subprocess.CompletedProcess(command, process.returncode, *said)
            for process in (first, second)
            if process and (said := process.communicate(timeout=120))
        ]
    return ended


def waits_for(second: "subprocess.Popen[str]", first: "subprocess.Popen[str]") -> None:
    """Read what the second command says until it waits for the first."""
    assert second.stderr
    said = ""
    while "waiting for process" not in said:
        line = second.stderr.readline()
        assert line, said
        said += line
    assert f"waiting for process {first.pid}, which is" in said


@pytest.mark.parametrize("only", [(), ("--only", "pip")], ids=["prefix", "virtual environment"])
def test_two_installs(
    checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path, only: tuple[str, ...], record_property: Record
) -> None:
    record_property("fault", "two at once")
    checkout.lock("--channel", str(channel.folder))
    place, link = tmp_path / "disk" / "env", tmp_path / "link"
    link.symlink_to("disk")
    options = only or ("--channel", channel.url)
    again = ("install", "tiny", str(link / ".." / "link" / "env"), *options)  # the same place in other words
    said = at_once(checkout, index, "install", "tiny", str(place), *options, again=again)
    assert [out for out, _ in said] == [f"{place / 'bin' / 'python'}\n"] * 2
    assert "env: as installed, by names and sizes of files" in said[1][1]
    assert {path.name for path in place.parent.iterdir()} == {"env", ".env.lock"}
    ended = checkout.run("install", "tiny", str(place), "--check")
    assert ended.returncode == 0, ended.stderr
    assert index.downloads[ALPHA] == 1


def test_two_bundles(checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    checkout.lock("--channel", str(channel.folder))
    place = tmp_path / "stick" / "bundle"
    link = tmp_path / "link"
    link.symlink_to(place)
    again = ("bundle", "tiny", str(link), "--channel", channel.url)
    at_once(checkout, index, "bundle", "tiny", str(place), "--channel", channel.url, again=again)
    found = snapshot(place)
    assert found == {**json.loads((place / "manifest.json").read_text())["files"], "manifest.json": found["manifest.json"]}
    assert index.downloads[ALPHA] == 1


def test_two_smokes(checkout: TestCheckout, index: Index, record_property: Record) -> None:
    record_property("fault", "two at once")
    checkout.lock()
    said = [json.loads(out.splitlines()[-1]) for out, _ in at_once(checkout, index, "smoke", "tiny")]
    assert said[0]["alpha"] == said[1]["alpha"]
    assert index.downloads[ALPHA] == 1


def test_two_reports_in_one_folder(tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    with report_folder(tmp_path / "report", "") as work:
        (work / "file").touch()
        with pytest.raises(InputError, match="in use by process"), report_folder(tmp_path / "report", ""):
            pytest.fail("two runs wrote to one folder")
        assert (work / "file").exists()


def test_two_locks(checkout: TestCheckout, tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    ended = stopped(checkout, tmp_path, "os.rename", "lock", "tiny")
    assert [one.returncode for one in ended] == [0, 0], ended
    assert ended[1].stdout.endswith("unchanged\n")
    assert checkout.run("lock", "--check", "tiny").returncode == 0


def test_two_of_what_is_new_and_two_docs(checkout: TestCheckout, root: Path, tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    checkout.lock()
    ended = stopped(checkout, tmp_path / "1", "os.rename", "new", "other", "--like", "tiny")
    assert [one.returncode for one in ended] == [0, 2], ended
    assert ended[1].stderr == "smokehouse: environments/other: already exists; choose another name\n"
    assert checkout.run("lock", "--check", "other").returncode == 0

    (checkout.root / "docker").mkdir()
    for name in ("base.toml", "base.lock"):
        shutil.copy(root / "docker" / name, checkout.root / "docker")
    (checkout.root / "README.md").write_text("<!-- environments -->\n<!-- /environments -->\n")
    ended = stopped(checkout, tmp_path / "2", "os.rename", "docs")
    assert [one.returncode for one in ended] == [0, 0], ended
    assert ended[1].stdout == ""
    assert checkout.run("docs", "--check").returncode == 0
