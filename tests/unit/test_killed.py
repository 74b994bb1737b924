"""A command that is killed anywhere, as by `kill -9`, leaves nothing half-made in use: a second call completes it.

Python raises an audit event for every call that changes the file system; the command is killed before one of them. Sampled over
the whole command, since all of them would take hours.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from smokehouse.storage.files import hashed

from .channel import Channel
from .conftest import TestCheckout

# Of all the changes that a command makes, those before which it is killed.
SAMPLED = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
FEWER = (0.3, 0.7, 1.0)  # of commands that write few files, each at once
TRIES = 5
# Counts changes as bytes in a file, and kills this process, but none that it starts, before one of them.
HOOK = """
import os, signal, sys
_at, _file = os.environ.pop("KILLED_AT", ""), os.environ.pop("COUNTED_IN", "")
if _file:
    _counted, _number = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 0
    _changes = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}

    def _hook(event, arguments):
        global _number
        if event == "open" and (arguments[0] == os.devnull or isinstance(arguments[0], int)):
            return  # an open pipe is written to
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _changes:
            if _at and _number == int(_at):
                os.kill(os.getpid(), signal.SIGKILL)
            _number += 1
            os.write(_counted, b".")

    sys.addaudithook(_hook)
"""


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of every file below `folder`, by its path."""
    return {str(path.relative_to(folder)): hashed(path) for path in folder.rglob("*") if path.is_file()}


class Killer:
    """Runs one command, killed or not."""

    def __init__(self, checkout: TestCheckout, command: list[str], folder: Path) -> None:
        (folder / "hook").mkdir(parents=True)
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        self.checkout, self.command, self.folder = checkout, command, folder
        self.path = f"{folder / 'hook'}:{checkout.environ['PYTHONPATH']}"

    def run(self, at: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command, killed before the change number `at`."""
        (self.folder / "count").unlink(missing_ok=True)
        variables = {"COUNTED_IN": str(self.folder / "count"), **({} if at is None else {"KILLED_AT": str(at)})}
        return self.checkout.run(*self.command, PYTHONPATH=self.path, PYTHONDONTWRITEBYTECODE="1", **variables)

    def changes(self) -> int:
        """Run the command to its end, and return how many changes it makes."""
        ended = self.run()
        assert ended.returncode == 0, ended.stderr
        return (self.folder / "count").stat().st_size

    def kill(self, at: int, remove: Callable[[], object]) -> None:
        """Kill the command before the change number `at`, or before the last one of a run that makes fewer.

        Two runs need not make equally many: a cache is warm the second time, and threads write in another order.
        """
        for _ in range(TRIES):
            remove()
            ended = self.run(at)
            if ended.returncode == -signal.SIGKILL:
                return
            assert ended.returncode == 0, (at, ended.stderr)
            at = min(at, (self.folder / "count").stat().st_size) - 1
        raise AssertionError(f"the command ended before change {at} in {TRIES} runs")


def kill_everywhere(
    killer: Killer, remove: Callable[[], object], check: Callable[[], object], sampled: Sequence[float] = SAMPLED
) -> int:
    """Kill the command at sampled changes, each time from the start, and check what a second call makes; return how often."""
    remove()
    count = killer.changes()
    assert count >= 10
    expected = check()
    for at in sorted({min(int(count * part), count - 1) for part in sampled}):
        killer.kill(at, remove)
        ended = killer.checkout.run(*killer.command)
        assert ended.returncode == 0, (at, ended.stderr)
        assert check() == expected, at
    return count


def test_killed_lock(checkout: TestCheckout, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("fault", "kill -9")
    locks = checkout.pins.parent

    def check() -> object:
        assert not [path.name for path in locks.iterdir() if path.name.startswith(".")]
        assert checkout.run("lock", "tiny", "--check").returncode == 0
        return snapshot(locks)

    kill_everywhere(Killer(checkout, ["lock", "tiny"], tmp_path), lambda: shutil.rmtree(locks, ignore_errors=True), check)


def test_killed_bundle(
    checkout: TestCheckout, channel: Channel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9")
    checkout.lock()
    place = tmp_path / "stick"

    def check() -> object:
        found = snapshot(place / "bundle")
        listed = json.loads((place / "bundle" / "manifest.json").read_text())["files"]
        assert {path: digest for path, digest in found.items() if path != "manifest.json"} == listed
        return found

    command = ["bundle", "tiny", str(place / "bundle"), "--channel", channel.url]
    kill_everywhere(Killer(checkout, command, tmp_path), lambda: shutil.rmtree(place, ignore_errors=True), check)


def test_killed_install(
    checkout: TestCheckout, channel: Channel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9")
    checkout.lock()
    place = tmp_path / "disk"

    def check() -> object:
        assert {path.name for path in place.iterdir()} == {"envs", ".envs.lock"}
        ended = checkout.run("install", "tiny", str(place / "envs"), "--check")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        imported = subprocess.run([place / "envs" / "bin" / "python", "-c", "import alpha"], capture_output=True, timeout=60)
        return imported.returncode

    command = ["install", "tiny", str(place / "envs"), "--channel", channel.url]
    killer = Killer(checkout, command, tmp_path)
    kill_everywhere(killer, lambda: shutil.rmtree(place, ignore_errors=True), check)
    # What changes nothing leaves nothing behind, wherever it is killed.
    (tmp_path / "count").unlink(missing_ok=True)
    killer.command = ["install", "tiny", str(place / "envs"), "--check"]
    assert killer.run().returncode == 0
    assert (tmp_path / "count").read_bytes() == b""


def test_killed_new(checkout: TestCheckout, root: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("fault", "kill -9")
    shutil.copytree(root / "smoke_tests" / "families", checkout.root / "smoke_tests" / "families")
    checkout.lock()
    made = [checkout.root / part / "other" for part in ("environments", "lockfiles")]
    family = checkout.root / "smoke_tests" / "families" / "other_vl.py"

    def check() -> object:
        assert checkout.run("lock", "--check", "other").returncode == 0
        assert not [path for folder in made for path in folder.rglob(".*")]
        return [*map(snapshot, made), hashed(family)]

    def remove() -> None:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        family.unlink(missing_ok=True)

    command = ["new", "other", "--like", "tiny", "--family", "other_vl", "--class", "OtherVL"]
    kill_everywhere(Killer(checkout, command, tmp_path), remove, check)
    assert checkout.run(*command).returncode == 2  # it is there


def test_killed_docs(
    checkout: TestCheckout, root: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9")
    checkout.lock()
    (checkout.root / "docker").mkdir()
    for name in ("base.toml", "base.lock"):
        shutil.copy(root / "docker" / name, checkout.root / "docker")
    for number in range(3):
        assert checkout.run("new", f"other{number}", "--like", "tiny").returncode == 0
    readme, pages = checkout.root / "README.md", checkout.root / "docs" / "environments"

    def check() -> object:
        assert checkout.run("docs", "--check").returncode == 0
        assert not list(checkout.root.glob(".*.new"))
        return snapshot(pages), hashed(readme)

    def remove() -> None:
        shutil.rmtree(pages, ignore_errors=True)
        readme.write_text("<!-- environments -->\n<!-- /environments -->\n")

    kill_everywhere(Killer(checkout, ["docs"], tmp_path), remove, check, FEWER)


REPORT = """
import sys
from pathlib import Path
from smoke_tests import report
from smoke_tests.report_folder import report_folder
folder = Path(sys.argv[1])
document = {"environment": "x", "device": "cpu", "backend": "gloo", "seconds": 1.0, "started": "2026-01-01T00:00:00+00:00",
            "verdict": "passed", "failure": "", "not_run": [], "versions": {}, "precision": "fp32", "world_size": 2,
            "lock": {}, "machine": {"cpu": "c", "cpus": 1, "memory_bytes": 1, "architecture": "a"}, "checkpoint": "made"}
with report_folder(folder, ""):
    report.write(folder, document | {"environment": sys.argv[2]}, [])
"""


def test_killed_report(root: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Where report.json is, the rest is, and of the same run; a killed run leaves nothing that a second one cannot replace."""
    record_property("fault", "kill -9")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    folder, count = tmp_path / "report", tmp_path / "count"
    paths = f"{tmp_path / 'hook'}:{root}:{root / 'src'}"

    def run(number: int, at: str = "") -> int:
        count.unlink(missing_ok=True)
        environ = {**os.environ, "PYTHONPATH": paths, "COUNTED_IN": str(count), "KILLED_AT": at, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "-c", REPORT, str(folder), f"run{number}"], env=environ, timeout=60).returncode

    assert run(0) == 0
    changes = count.stat().st_size
    assert changes >= 10
    expected = {"report.json", "report.html", "junit.xml", "logs", ".lock"}
    for number, at in enumerate(range(0, changes, 2), 1):
        assert run(number, str(at)) == -signal.SIGKILL
        if (folder / "report.json").exists():
            of_run = json.loads((folder / "report.json").read_text())["environment"]
            assert of_run in (f"run{number}", f"run{-number + 1}")
            assert all(of_run in (folder / name).read_text() for name in ("report.html", "junit.xml")), at
        assert run(-number) == 0
        assert {path.name for path in folder.iterdir()} == expected, at
