"""Virtual environments: complete or absent, one at a time, and only what is locked."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from smokehouse import console
from smokehouse.programs import uv

from ..channel import Channel
from ..conftest import File, Index, TestCheckout, wheel


def gate(index: Index, name: str = "alpha-1.0-py3-none-any.whl") -> File:
    """Make the index wait before it sends a file, and return that file."""
    file = index.files[name]
    file.gate = threading.Event()
    return file


def children(pid: int) -> list[int]:
    """Return the running child processes of `pid`."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_smoke_starts_the_tests_in_the_locked_environment(checkout: TestCheckout) -> None:
    checkout.lock()
    foreign = {
        "PYTHONPATH": f"{checkout.environ['PYTHONPATH']}:/nowhere",
        "PYTHONSAFEPATH": "1",
        "VIRTUAL_ENV": "/nowhere",
    }
    ended = checkout.run("smoke", "tiny", "--zero", "2,3", "-x", "tiny", **foreign)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["argv"] == [
        *("--environment", "tiny"),
        *("--stack", str(checkout.stack)),
        *("--lock", str(checkout.pins.parent)),
        *("--report", str(checkout.root / "build" / "smoke" / "tiny")),
        *("--zero", "2,3", "-x", "tiny"),
    ]
    assert said["python"] == str(checkout.installed / "bin" / "python")
    assert said["cwd"] == str(checkout.root)
    assert (said["site"], said["path"]) == (1, None)
    assert Path(said["alpha"]).is_relative_to(checkout.installed)
    assert list(checkout.installed.glob("lib/*/site-packages/__pycache__/alpha.*.pyc"))


def test_options_are_validated_before_any_download(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    assert checkout.refused("smoke", "tiny", "--nonsense") == "smokehouse: smoke_tests: --nonsense is no option; see --help"
    assert checkout.run("smoke", "tiny", "--help").returncode == 0
    assert not checkout.installed.exists()
    assert not index.downloads


def test_report_is_written_to_the_requested_folder(checkout: TestCheckout) -> None:
    checkout.lock()
    for option in (["--report", "here"], ["--report=here"]):
        argv = json.loads(checkout.run("smoke", "tiny", *option).stdout)["argv"]
        assert argv[6:] == option


def test_environment_has_a_default(checkout: TestCheckout) -> None:
    assert "environments/qwen2.5-vl: environment not found" in checkout.refused("smoke", "--zero", "2")


def test_installation_is_reused_until_its_lock_changes(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    assert "installing tiny (3 packages)" in checkout.run("smoke", "tiny").stderr
    marked = checkout.marker.stat().st_mtime_ns
    again = checkout.run("smoke", "tiny", UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert (again.returncode, again.stderr) == (0, "")
    assert checkout.marker.stat().st_mtime_ns == marked

    checkout.edit(checkout.environment, "      - beta\n", "")
    checkout.lock()
    assert "installing tiny (1 packages)" in checkout.run("smoke", "tiny").stderr
    assert not list(checkout.installed.glob("lib/*/site-packages/beta.py"))

    (checkout.installed / "bin" / "python").unlink()
    assert "installing tiny" in checkout.run("smoke", "tiny").stderr


def test_tampered_file_is_refused(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    index.files["gamma-1.5-py3-none-any.whl"].sent = wheel("gamma", "1.5", code="evil = True\n")
    said = checkout.refused("smoke", "tiny")
    assert (
        "tiny cannot be installed: hash mismatch, the index serves gamma==1.5 with another hash than the lock specifies; "
        in said
    )
    assert not checkout.marker.exists()
    assert not list(checkout.installed.glob("lib/*/site-packages/gamma.py"))


def test_package_removed_from_the_index(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    del index.files["gamma-1.5-py3-none-any.whl"]
    assert "tiny cannot be installed: " in checkout.refused("smoke", "tiny")
    assert not checkout.marker.exists()


def test_unreachable_index(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    said = checkout.refused("smoke", "tiny", UV_DEFAULT_INDEX="http://127.0.0.1:9", UV_CACHE_DIR=str(tmp_path / "none"))
    assert "the package index at 127.0.0.1:9 cannot be reached; check the network, or set UV_DEFAULT_INDEX" in said
    assert not checkout.marker.exists()


def test_killed_installation_is_not_taken_for_complete(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    file = gate(index)
    process = checkout.start("smoke", "tiny")
    assert file.requested.wait(60)
    [uv] = children(process.pid)
    process.kill()
    process.communicate(timeout=10)
    assert not checkout.marker.exists()
    # uv outlives its killed parent; the next process waits for it instead of installing into its folder.
    second = checkout.start("smoke", "tiny")
    assert second.stderr
    assert second.stderr.readline() == f"smokehouse: waiting for process {process.pid}, which is installing tiny\n"
    assert not checkout.marker.exists()
    os.kill(uv, signal.SIGKILL)
    assert file.gate
    file.gate.set()
    stdout, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    assert json.loads(stdout)["alpha"]
    assert checkout.marker.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_installation_leaves_no_process(checkout: TestCheckout, index: Index, number: signal.Signals) -> None:
    checkout.lock()
    file = gate(index)
    process = checkout.start("smoke", "tiny")
    assert file.requested.wait(60)
    [uv] = children(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{uv}").exists()
    assert not checkout.marker.exists()


def test_two_at_once_install_once(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    file = gate(index)
    first = checkout.start("smoke", "tiny")
    assert file.requested.wait(60)
    second = checkout.start("smoke", "tiny")
    assert second.stderr
    assert second.stderr.readline() == f"smokehouse: waiting for process {first.pid}, which is installing tiny\n"
    assert file.gate
    file.gate.set()
    for process in (first, second):
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert json.loads(stdout)["alpha"]
    assert "installing" not in stderr
    assert index.downloads["alpha-1.0-py3-none-any.whl"] == 1


def test_lock_for_another_platform(checkout: TestCheckout, channel: Channel) -> None:
    checkout.edit(checkout.stack, "x86_64", "aarch64")
    channel.add("python", "3.11.0", subdir="linux-aarch64", index=False)
    channel.add("cuda-nvcc", "12.4.131", subdir="linux-aarch64")
    checkout.lock("--channel", str(channel.folder))
    said = checkout.refused("smoke", "tiny")
    where = r"smokehouse: lockfiles/tiny/requirements\.txt"
    assert re.fullmatch(
        rf"{where}: expected a machine compatible with aarch64-manylinux_2_28, found .*; use another machine", said
    )
    assert not checkout.installed.exists()


def test_lock_for_a_python_that_is_not_found(checkout: TestCheckout, channel: Channel) -> None:
    checkout.edit(checkout.environment, "python=3.11", "python=3.99")
    channel.add("python", "3.99.0", subdir="linux-64")
    checkout.lock("--channel", str(channel.folder))
    said = checkout.refused("smoke", "tiny")
    assert re.search(
        r": Python 3\.99 not found: the machine has 3\.\d+\.\d+ \(/\S+\).*; install it and put it on PATH, or use smokehouse ",
        said,
    )
    assert not checkout.marker.exists()


# As a narrow terminal, and as nox and CI set them: by them, uv wraps and colours its messages.
@pytest.mark.parametrize("output", [{}, {"COLUMNS": "30"}, {"FORCE_COLOR": "1"}, {"CLICOLOR_FORCE": "1"}], ids=str)
def test_missing_python_is_not_blamed_on_the_index(checkout: TestCheckout, tmp_path: Path, output: dict[str, str]) -> None:
    checkout.lock()
    nothing = {"PATH": str(tmp_path), "UV_PYTHON_INSTALL_DIR": str(tmp_path / "pythons"), **output}
    unreachable = {"UV_PYTHON_DOWNLOADS": "automatic", "UV_PYTHON_INSTALL_MIRROR": "http://user:secret@127.0.0.1:9"}
    said = checkout.refused("smoke", "tiny", **nothing, **unreachable)
    assert "Python 3.11 not found: the machine has none, and uv cannot download it from 127.0.0.1:9; install it" in said
    assert "index" not in said
    assert "secret" not in said
    broken = tmp_path / "python3.11"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    said = checkout.refused("smoke", "tiny", **nothing)
    assert f"Python 3.11 not found: the machine has none, and {broken} does not run; install it" in said


def test_python_by_a_relative_path_is_that_of_the_working_folder(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "elsewhere" / "p"
    python = os.path.relpath(sys.executable, checkout.root)
    ended = checkout.run("install", "tiny", str(prefix), "--only", "pip", "--python", python)
    assert ended.returncode == 0, ended.stderr
    recorded = Path(json.loads((prefix / ".smokehouse.json").read_text())["python"])
    assert recorded.is_absolute()
    assert recorded.samefile(sys.executable)


def test_installation_says_every_few_seconds_that_it_goes_on(
    checkout: TestCheckout, index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.lock()
    sends = gate(index).gate
    assert sends
    for name, value in checkout.environ.items():
        monkeypatch.setenv(name, value)
    uv.create_environment(tmp_path / "p", "3.11")
    said: list[str] = []

    def status(text: str) -> None:
        said.append(text)
        sends.set()  # the index sends the file, and uv ends, once a line is there

    monkeypatch.setattr(console, "status", status)
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.01)
    uv.install(tmp_path / "p", checkout.pins, checkout.build_pins, [])
    assert re.fullmatch(r"installing PyPI packages and compiling them to bytecode, for \d+ s", said[0])


def test_disk_too_small_is_reported_first(checkout: TestCheckout, index: Index) -> None:
    index.files["gamma-1.5-py3-none-any.whl"].size = 10**15
    checkout.lock()
    assert re.search(
        r"/build/environments: expected 2000000\.0 GB of free disk space to install \S+, found [\d.]+ GB",
        checkout.refused("smoke", "tiny"),
    )
    assert not checkout.installed.exists()


def test_disk_becomes_full(checkout: TestCheckout, index: Index, full_disk: Path) -> None:
    index.add("gamma", "1.5", code="#" * (64 << 20))
    (checkout.root / "build").symlink_to(full_disk)
    checkout.lock()
    said = checkout.refused("smoke", "tiny")
    assert said.startswith("smokehouse: tiny cannot be installed: the disk is full; free some space")
    assert not checkout.marker.exists()
    shutil.rmtree(full_disk / "environments")


def test_compiled_files_that_a_full_disk_cuts(checkout: TestCheckout, index: Index, full_disk: Path) -> None:
    """Uv and Python notice nothing; once there is space, the next call compiles them again."""
    index.add("gamma", "1.5", code=f"text = {'#' * (9 << 20)!r}\n")  # 9 MB compiled, too, of a disk with 16
    checkout.lock()
    prefix = full_disk / "tiny"
    assert "the disk is full; free some space" in checkout.refused("install", "tiny", str(prefix), "--only", "pip")
    [compiled] = prefix.glob("lib/*/site-packages/__pycache__/gamma.*.pyc")
    assert 0 < compiled.stat().st_size < 9 << 20
    subprocess.run(["mount", "-o", "remount,size=64m", str(full_disk)], check=True, timeout=10)
    ended = checkout.run("install", "tiny", str(prefix), "--only", "pip")
    assert ended.returncode == 0, ended.stderr
    assert subprocess.run([prefix / "bin" / "python", "-c", "import gamma"], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("kept", [512, 0])
def test_compiled_files_that_were_cut_are_compiled_again(
    checkout: TestCheckout, index: Index, tmp_path: Path, kept: int
) -> None:
    index.add("gamma", "1.5", code="".join(f"def name_{number}(): return {number}\n" for number in range(99)))
    checkout.lock()
    prefix = tmp_path / "p"
    install = ("install", "tiny", str(prefix), "--only", "pip")
    assert checkout.run(*install).returncode == 0
    [compiled] = prefix.glob("lib/*/site-packages/__pycache__/gamma.*.pyc")
    whole = compiled.read_bytes()
    compiled.write_bytes(whole[:kept])
    checked = checkout.run(*install[:3], "--check")
    assert (checked.returncode, checked.stdout) == (
        1,
        f"{compiled.relative_to(prefix)}: cut, so that Python cannot load it; remove it\n",
    )
    ended = checkout.run(*install)
    assert ended.returncode == 0, ended.stderr
    assert "installing 0 of 3 PyPI packages" in ended.stderr
    assert compiled.read_bytes()[16 if kept == 0 else 0 :] == whole[16 if kept == 0 else 0 :]
    compiled.write_bytes(whole[: kept + 99])  # nothing that a disk does: --check reads it
    assert checkout.run(*install[:3], "--check").stdout == checked.stdout
    compiled.write_bytes(bytes(4) + whole[4:512])  # of another Python, which compiles it again
    assert checkout.run(*install[:3], "--check").returncode == 0


@pytest.mark.parametrize("good", [True, False])
def test_progress_at_a_terminal(checkout: TestCheckout, index: Index, good: bool) -> None:
    checkout.lock()
    if not good:
        index.files["gamma-1.5-py3-none-any.whl"].sent = wheel("gamma", "1.5", code="evil = True\n")
    code, text = checkout.at_terminal("smoke", "tiny")
    assert code == (0 if good else 2)
    assert "smokehouse: installing tiny (3 packages)" in text
    assert "Resolved 3 packages" in text
    assert text.count("with another hash") == (not good)
    assert "error:" not in text
    assert "warning:" not in text
    assert checkout.marker.exists() == good
