"""Two commands at once in one place: the second waits for the first, and both find the same whole thing."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_tests.options import InputError
from smoke_tests.report_folder import report_folder

from ..unit.channel import Channel
from ..unit.conftest import Index, TestCheckout
from ..unit.test_killed import snapshot

ALPHA = "alpha-1.0-py3-none-any.whl"
Record = Callable[[str, object], None]


def at_once(checkout: TestCheckout, index: Index, *command: str) -> list[str]:
    """Start a command twice, the second while the index holds the first up; return what both say once they have ended."""
    file, gate = index.files[ALPHA], threading.Event()
    file.requested.clear()
    file.gate = gate
    first = checkout.start(*command)
    assert file.requested.wait(60)
    second = checkout.start(*command)
    assert second.stderr
    said = ""
    while "waiting for process" not in said:
        line = second.stderr.readline()
        assert line, said
        said += line
    assert f"waiting for process {first.pid}, which is" in said
    gate.set()
    ended = [first.communicate(timeout=120), second.communicate(timeout=120)]
    assert [process.returncode for process in (first, second)] == [0, 0], ended
    return [out for out, _ in ended]


@pytest.mark.parametrize("only", [(), ("--only", "pip")], ids=["prefix", "virtual environment"])
def test_two_installs(
    checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path, only: tuple[str, ...], record_property: Record
) -> None:
    record_property("fault", "two at once")
    checkout.lock("--channel", str(channel.folder))
    place = tmp_path / "disk" / "env"
    at_once(checkout, index, "install", "tiny", str(place), *(only or ("--channel", channel.url)))
    assert {path.name for path in place.parent.iterdir()} == {"env", ".env.lock"}
    ended = checkout.run("install", "tiny", str(place), "--check")
    assert ended.returncode == 0, ended.stderr
    assert index.downloads[ALPHA] == 1


def test_two_bundles(checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    checkout.lock("--channel", str(channel.folder))
    place = tmp_path / "stick" / "bundle"
    at_once(checkout, index, "bundle", "tiny", str(place), "--channel", channel.url)
    found = snapshot(place)
    assert found == {**json.loads((place / "manifest.json").read_text())["files"], "manifest.json": found["manifest.json"]}
    assert index.downloads[ALPHA] == 1


def test_two_smokes(checkout: TestCheckout, index: Index, record_property: Record) -> None:
    record_property("fault", "two at once")
    checkout.lock()
    said = [json.loads(out.splitlines()[-1]) for out in at_once(checkout, index, "smoke", "tiny")]
    assert said[0]["alpha"] == said[1]["alpha"]
    assert index.downloads[ALPHA] == 1


def test_two_reports_in_one_folder(tmp_path: Path, record_property: Record) -> None:
    record_property("fault", "two at once")
    with report_folder(tmp_path / "report", "") as work:
        (work / "file").touch()
        with pytest.raises(InputError, match="in use by process"), report_folder(tmp_path / "report", ""):
            pytest.fail("two runs wrote to one folder")
        assert (work / "file").exists()
