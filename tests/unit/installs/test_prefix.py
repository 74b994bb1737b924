"""Prefixes: conda and PyPI packages in one folder, with real packages, a real Python and injected faults."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from rattler import PrefixRecord
from rattler.package_streaming import extract

from ..channel import PYTHON, Channel
from ..conftest import Index, TestCheckout, wheel
from ..edited_locks import change_conda, read
from .test_virtualenv import children, gate

ALPHA = "alpha-1.0-py3-none-any.whl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A prefix whose path has a space."""
    return tmp_path / "my disk" / "tiny"


@pytest.fixture
def command(target: Path, channel: Channel) -> list[str]:
    """The command that installs into `target`."""
    return ["install", "tiny", str(target), "--channel", channel.url]


def run(program: Path, *arguments: str) -> str:
    """Run a program and return its output."""
    environ = {"PATH": os.environ["PATH"]}
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=60, env=environ).stdout


def lock(checkout: TestCheckout, channel: Channel) -> None:
    """Lock `tiny` with the records of `channel`."""
    checkout.lock("--channel", str(channel.folder))


def install(checkout: TestCheckout, command: list[str], **environ: str) -> None:
    """Run `command`, which must succeed."""
    ended = checkout.run(*command, **environ)
    assert ended.returncode == 0, ended.stderr


def staging(target: Path) -> Path:
    """Return the folder of an unfinished installation."""
    return target.with_name(f".{target.name}.partial")


def kill_when_linked(checkout: TestCheckout, index: Index, command: list[str]) -> None:
    """Kill an installation while it waits for a wheel, after linking its conda packages."""
    file = gate(index)
    process = checkout.start(*command)
    assert file.requested.wait(60)
    [uv] = children(process.pid)
    process.kill()
    process.communicate(timeout=10)
    os.kill(uv, signal.SIGKILL)
    assert file.gate
    file.gate.set()


def test_python_with_conda_and_pypi_packages(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    ended = checkout.run(*command)
    assert ended.returncode == 0, ended.stderr
    python = target / "bin" / "python"
    assert ended.stdout == f"{python}\n"
    assert f"installing tiny in {target} (3 conda packages, 3 PyPI packages)" in ended.stderr
    code = "import sys, json, ssl, alpha; print(json.dumps([sys.prefix, sys.version, alpha.__file__, alpha.hello()]))"
    prefix, version, file, said = json.loads(run(python, "-c", code))
    assert (prefix, said) == (str(target), "hello")
    assert version
    assert Path(file).is_relative_to(target)
    assert (target / "etc" / "libtiny.conf").read_text() == f"prefix={target}\n"
    assert run(target / "bin" / "alpha") == "hello\n"
    assert not (target / "bin" / "nvcc").exists()
    assert list(target.glob("lib/*/site-packages/__pycache__/alpha.*.pyc"))
    assert sorted(path.name for path in target.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_installation_records_its_origin(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    lock_json = read(checkout)
    install(checkout, command)
    records = [json.loads(path.read_text()) for path in (target / "conda-meta").glob("*.json")]
    assert {(record["url"], record["sha256"]) for record in records} == {
        (f"https://conda.anaconda.org/conda-forge/{package.path}", package.sha256) for package in lock_json.main
    }
    for path in (target / "conda-meta").glob("*.json"):
        assert PrefixRecord.from_path(path).url in {record["url"] for record in records}
    assert {record["channel"] for record in records} == {"https://conda.anaconda.org/conda-forge"}
    # Bytecode contains the path where it was compiled, which Python corrects when it loads it.
    unfinished = str(staging(target)).encode()
    assert not [
        path for path in target.rglob("*") if path.is_file() and path.suffix != ".pyc" and unfinished in path.read_bytes()
    ]


def test_records_of_pypi_packages_are_correct(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    install(checkout, command)
    packages = target / "lib" / f"python{PYTHON}" / "site-packages"
    verified = 0
    for record in packages.glob("*.dist-info/RECORD"):
        for name, digest, size in csv.reader(record.read_text().splitlines()):
            if digest:
                data = (packages / name).read_bytes()
                expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={expected}", str(len(data))), name
                verified += 1
    assert verified >= 9


def test_devel_has_the_toolkit(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    install(checkout, [*command, "--devel"])
    assert run(target / "bin" / "nvcc") == f"{target}\n"


def test_installation_for_another_path(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str], tmp_path: Path
) -> None:
    lock(checkout, channel)
    used = tmp_path / "image" / "opt" / "tiny"
    install(checkout, [*command, "--used-as", str(used)])
    assert (target / "etc" / "libtiny.conf").read_text() == f"prefix={used}\n"
    assert run(target / "bin" / "alpha") == "hello\n"
    used.parent.mkdir(parents=True)
    target.rename(used)
    assert run(used / "bin" / "alpha") == "hello\n"
    assert run(used / "bin" / "python", "-c", "import sys; print(sys.prefix)") == f"{used}\n"


def test_channel_in_a_folder(checkout: TestCheckout, channel: Channel, index: Index, target: Path) -> None:
    lock(checkout, channel)
    install(checkout, ["install", "tiny", str(target), "--channel", str(channel.folder)])
    assert run(target / "bin" / "alpha") == "hello\n"
    assert not channel.requests


def test_complete_installation_is_unchanged(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    install(checkout, command)
    channel.requests.clear()
    requests = index.requests
    inode = target.stat().st_ino
    again = checkout.run(*command)
    hint = f"source '{target}/bin/activate', or smokehouse run --prefix '{target}' tiny -- COMMAND"
    found = f"smokehouse: {target}: as installed, by names and sizes of files; --repair reads them\n"
    assert (again.returncode, again.stderr) == (0, f"{found}smokehouse: To use it: {hint}\n")
    assert (channel.requests, index.requests, target.stat().st_ino) == ([], requests, inode)


def test_installation_of_an_older_lock_is_replaced(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    install(checkout, command)
    checkout.edit(checkout.environment, "      - beta\n", "")
    lock(checkout, channel)
    install(checkout, command)
    assert run(target / "bin" / "alpha") == "hello\n"
    assert not list(target.glob("lib/*/site-packages/beta.py"))
    assert not staging(target).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "other environment"])
def test_prefix_with_other_files(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str], kind: str
) -> None:
    lock(checkout, channel)
    target.parent.mkdir()
    precious = target / "precious.txt"
    if kind == "file":
        precious = target
    elif kind == "link":
        (target.parent / "other").mkdir()
        target.symlink_to("other")
    else:
        target.mkdir()
    precious.write_text("precious")
    if kind == "other environment":
        (target / ".smokehouse.json").write_text('{"environment": "large"}')
    expected = "a folder, found a file or link" if kind in ("file", "link") else "an installation of tiny, found other files"
    for options in (command, ["install", "tiny", str(target), "--only", "pip"]):
        said = checkout.refused(*options)
        assert said.startswith(f"smokehouse: {target}: expected {expected}; specify an empty or new ")
    assert precious.read_text() == "precious"
    assert not [*target.parent.glob(".*")]
    assert not channel.requests


def test_empty_prefix_is_used(checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]) -> None:
    lock(checkout, channel)
    target.mkdir(parents=True)
    install(checkout, command)
    assert run(target / "bin" / "alpha") == "hello\n"


@pytest.mark.parametrize("fault", ["tampered", "html", "gone", "longer"])
def test_bad_archive(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str], fault: str
) -> None:
    lock(checkout, channel)
    archive = channel.archive("certificates")
    data = archive.read_bytes()
    if fault == "tampered":
        channel.faults.sent[archive.name] = data[:-1] + bytes([data[-1] ^ 1])
    elif fault == "longer":
        channel.faults.sent[archive.name] = data + b"more"
    elif fault == "html":
        channel.faults.html.add(archive.name)
    else:
        channel.faults.gone.add(archive.name)
    host = channel.url.split("/")[2]
    message = {
        "tampered": f"SHA-256 mismatch, {host} serves another file than the lock specifies; use another --channel",
        "longer": f"SHA-256 mismatch, {host} serves another file than the lock specifies; use another --channel",
        "html": f"expected a file, {host} returned a web page, such as a proxy's login page; sign in to the network, or",
        "gone": f"{host} returned 404 Not Found; use another --channel",
    }[fault]
    assert checkout.refused(*command).startswith(f"smokehouse: {archive.name}: {message}")
    assert not target.exists()
    assert not list(staging(target).rglob(archive.name))
    assert not any(path.stat().st_size for path in staging(target).rglob(f"{archive.name}.part"))

    for faults in (channel.faults.sent, channel.faults.html, channel.faults.gone):
        faults.clear()
    install(checkout, command)
    assert run(target / "bin" / "alpha") == "hello\n"


def test_lost_connection(checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]) -> None:
    lock(checkout, channel)
    archive = channel.archive("python")
    channel.faults.cut[archive.name] = 5_000_000
    install(checkout, command)
    assert channel.ranges(archive.name) == [None, "bytes=5000000-"]
    assert run(target / "bin" / "alpha") == "hello\n"


def test_interrupted_download_is_resumed(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    archive = channel.archive("python")
    channel.faults.cut[archive.name] = 5_000_000
    channel.faults.lost.add(archive.name)
    assert "returned 404 Not Found" in checkout.refused(*command)
    assert not target.exists()
    channel.faults.gone.clear()
    channel.requests.clear()
    install(checkout, command)
    assert channel.ranges(archive.name) == ["bytes=5000000-"]
    assert run(target / "bin" / "alpha") == "hello\n"


def test_part_of_another_file_is_not_resumed(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    archive = channel.archive("libtiny")
    part = staging(target) / "archives" / "linux-64" / f"{archive.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    install(checkout, command)
    assert channel.ranges(archive.name) == ["bytes=14-", None]


def test_unreachable_channel(checkout: TestCheckout, channel: Channel, index: Index, target: Path) -> None:
    lock(checkout, channel)
    said = checkout.refused("install", "tiny", str(target), "--channel", "http://user:hunter2@127.0.0.1:9")
    assert re.search(r"\.conda: 127\.0\.0\.1:9 cannot be reached \(.*\); check the network, or use another --channel; ", said)
    assert "hunter2" not in said
    assert not target.exists()


def test_channel_folder_not_found(checkout: TestCheckout, channel: Channel, index: Index, target: Path, tmp_path: Path) -> None:
    lock(checkout, channel)
    said = checkout.refused("install", "tiny", str(target), "--channel", str(tmp_path / "none"))
    assert re.match(rf"smokehouse: {tmp_path}/none/\S+\.conda: cannot be read \(.*\); use another --channel", said)


def test_tampered_wheel(checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]) -> None:
    lock(checkout, channel)
    index.files["gamma-1.5-py3-none-any.whl"].sent = wheel("gamma", "1.5", code="evil = True\n")
    assert "hash mismatch, the index serves gamma==1.5 with another hash than the lock specifies" in checkout.refused(*command)
    assert not target.exists()


def test_killed_installation_is_completed(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    kill_when_linked(checkout, index, command)
    assert not target.exists()
    assert staging(target).is_dir()
    channel.requests.clear()
    install(checkout, command)
    assert not channel.requests
    assert run(target / "bin" / "alpha") == "hello\n"
    assert not staging(target).exists()


def test_edited_cache_is_not_installed(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    kill_when_linked(checkout, index, command)
    [cached] = staging(target).glob("cache/libtiny-1.0-0*/lib/libtiny.txt")
    assert cached.read_text() == "1.0\n"
    cached.unlink()
    cached.write_text("666\n")
    install(checkout, command)
    assert (target / "lib" / "libtiny.txt").read_text() == "1.0\n"


def test_installation_shares_no_file(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    install(checkout, command)
    from_conda = [target / "lib" / "libtiny.txt", target / "bin" / f"python{PYTHON}", target / "ssl" / "cacert.pem"]
    assert [path.stat().st_nlink for path in from_conda] == [1, 1, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["conda", "pip"])
def test_interrupted_installation(
    checkout: TestCheckout,
    channel: Channel,
    index: Index,
    target: Path,
    command: list[str],
    number: signal.Signals,
    moment: str,
) -> None:
    lock(checkout, channel)
    archive = channel.archive("python").name
    if moment == "conda":
        channel.faults.gates[archive] = threading.Event()
        requested = channel.reached[archive]
    else:
        requested = gate(index).requested
    process = checkout.start(*command)
    assert requested.wait(60)
    started = children(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{child}").exists() for child in started)
    assert not target.exists()
    for gated in (*channel.faults.gates.values(), index.files[ALPHA].gate):
        if gated:
            gated.set()
    install(checkout, command)
    assert run(target / "bin" / "alpha") == "hello\n"


def test_two_at_once_install_once(
    checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]
) -> None:
    lock(checkout, channel)
    file = gate(index)
    first = checkout.start(*command)
    assert file.requested.wait(60)
    second = checkout.start(*command)
    assert second.stderr
    assert second.stderr.readline() == f"smokehouse: waiting for process {first.pid}, which is installing tiny\n"
    assert file.gate
    file.gate.set()
    for process in (first, second):
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert stdout == f"{target / 'bin' / 'python'}\n"
    assert len(channel.ranges(channel.archive("python").name)) == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"CONDA_OVERRIDE_GLIBC": "2.17"}, "expected glibc 2.28 or later, found 2.17; install it on a newer"),
        (
            {"CONDA_OVERRIDE_CUDA": "12.2"},
            "expected CUDA driver 12.4 or later, found 12.2; update the NVIDIA",
        ),
    ],
)
def test_incompatible_machine(
    checkout: TestCheckout,
    channel: Channel,
    index: Index,
    target: Path,
    command: list[str],
    environ: dict[str, str],
    message: str,
) -> None:
    lock(checkout, channel)
    assert checkout.refused(*command, **environ).startswith(f"smokehouse: lockfiles/tiny/lock.json: {message}")
    assert not channel.requests
    install(checkout, command, CONDA_OVERRIDE_CUDA="12.9")


def test_disk_too_small_is_reported_first(checkout: TestCheckout, channel: Channel, index: Index, full_disk: Path) -> None:
    lock(checkout, channel)
    said = checkout.refused("install", "tiny", str(full_disk / "tiny"), "--channel", channel.url)
    assert re.match(
        rf"smokehouse: {full_disk}: expected 9\d\.\d MB of free disk space to install tiny, found 16\.\d MB; free some", said
    )
    assert not channel.requests


def test_disk_becomes_full_of_archives(checkout: TestCheckout, channel: Channel, index: Index, full_disk: Path) -> None:
    lock(checkout, channel)
    change_conda(checkout, "python", size=0)
    target = full_disk / "tiny"
    said = checkout.refused("install", "tiny", str(target), "--channel", channel.url)
    assert re.match(rf"smokehouse: {staging(target)}/archives/linux-64: the disk is full; free some space and run it", said)
    assert not target.exists()


def test_disk_becomes_full_of_files(checkout: TestCheckout, channel: Channel, index: Index, full_disk: Path) -> None:
    channel.add("zeros", files={"share/zeros": bytes(64 << 20)})
    checkout.edit(checkout.environment, "- cuda-nvcc=12.4", "- cuda-nvcc=12.4\n  - zeros")
    lock(checkout, channel)
    change_conda(checkout, "python", size=0)  # else it is known before that the disk is too small
    # Room for the archives, and none for the zeros that one of them is unpacked to.
    subprocess.run(["mount", "-o", "remount,size=64m", str(full_disk)], check=True, timeout=10)
    target = full_disk / "tiny"
    said = checkout.refused("install", "tiny", str(target), "--channel", channel.url)
    assert said == f"smokehouse: {staging(target) / 'prefix'}: the disk is full; free disk space and run it again"
    assert not target.exists()
    shutil.rmtree(staging(target))


def test_edited_lock(checkout: TestCheckout, channel: Channel, index: Index, target: Path, command: list[str]) -> None:
    lock(checkout, channel)
    edited = checkout.pins.with_name("conda-lock.yml")
    edited.write_text(edited.read_text() + "#\n")
    said = checkout.refused(*command)
    assert "lockfiles/tiny/lock.json: conda-lock.yml was edited since the lock was made; run smokehouse lock" in said
    assert not target.exists()


@pytest.mark.parametrize("good", [True, False])
def test_progress_at_a_terminal(checkout: TestCheckout, channel: Channel, target: Path, command: list[str], good: bool) -> None:
    lock(checkout, channel)
    archive = channel.archive("python")
    if not good:
        channel.faults.sent[archive.name] = b"?" * archive.stat().st_size
    code, text = checkout.at_terminal(*command)
    assert code == (0 if good else 2), text
    assert f"installing tiny in {target}" in " ".join(text.split())
    assert "fetching" in text
    assert ("linking" in text) == good
    assert text.count("serves another file than the lock specifies") == (not good)
    assert "Traceback" not in text
    assert target.exists() == good


def test_what_an_interrupted_call_unpacked_is_not_used(
    checkout: TestCheckout, channel: Channel, target: Path, command: list[str]
) -> None:
    """It has no hash in the lock: here it agrees with its own record, and differs from the archive."""
    lock(checkout, channel)
    install(checkout, command)
    [record] = (target / "conda-meta").glob("python-*.json")
    shutil.rmtree(target)
    unpacked = staging(target) / "cache" / record.stem
    shutil.copytree(channel.folder, staging(target) / "archives")
    extract(next((channel.folder / "linux-64").glob("python-*.conda")), unpacked)
    evil = unpacked / "bin" / "evil"
    evil.write_text("evil")
    paths = json.loads((unpacked / "info" / "paths.json").read_text())
    entry = {"_path": "bin/evil", "path_type": "hardlink", "sha256": hashlib.sha256(b"evil").hexdigest(), "size_in_bytes": 4}
    (unpacked / "info" / "paths.json").write_text(json.dumps(paths | {"paths": [*paths["paths"], entry]}))
    install(checkout, command)
    assert not (target / "bin" / "evil").exists()
    assert (target / "bin" / "python").exists()
