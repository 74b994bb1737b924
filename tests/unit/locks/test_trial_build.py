"""Source distributions that cannot be built as the lock says are refused by it; what their builds request is locked."""

import gzip
import hashlib
import io
import os
import platform
import re
import tarfile
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from smokehouse.environments.inputs import Inputs
from smokehouse.errors import UserError
from smokehouse.locks.solvers import sdist as sdist_module
from smokehouse.locks.solvers import trial_build
from smokehouse.locks.solvers.pip import Resolved
from smokehouse.locks.wheel_tags import Artefact
from smokehouse.programs import uv

from ..channel import Channel
from ..conftest import Index, TestCheckout, sdist
from .test_lock import BACKEND, lock_files, pins

STATIC = "Metadata-Version: 2.2\nName: {name}\nVersion: 1.0\n"  # PEP 643: uv does not build it to resolve
OWN_BACKEND = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
METADATA_HOOK = "def prepare_metadata_for_build_wheel(folder, settings=None):\n    "
REQUESTS_HOOK = "def get_requires_for_build_wheel(settings=None):\n    "


def add(
    checkout: TestCheckout, index: Index, name: str, hook: str, *, pyproject: str = OWN_BACKEND, static: bool = True
) -> None:
    """Make `tiny` require a source distribution with a backend that begins with `hook`."""
    files = {"pyproject.toml": pyproject, "own.py": f"{hook}\n{BACKEND}"}
    if static:
        files["PKG-INFO"] = STATIC.format(name=name)
    index.put(f"{name}-1.0.tar.gz", sdist(name, "1.0", files))
    text = checkout.environment.read_text()
    checkout.environment.write_text(f"{text}      - {name}\n")


@pytest.mark.parametrize("static", [True, False], ids=["static metadata", "metadata that uv builds"])
@pytest.mark.parametrize(
    ("hook", "found"),
    [
        ("import torch.version", "imports torch, which its build-system.requires does not list"),
        ("raise RuntimeError('no compiler')", "fails: RuntimeError: no compiler"),
        ("raise SystemExit(3)", "fails: without a message"),
    ],
)
def test_build_that_cannot_work_is_refused(checkout: TestCheckout, index: Index, hook: str, found: str, static: bool) -> None:
    checkout.lock()
    before = lock_files(checkout)
    add(checkout, index, "delta", hook, static=static)
    said = checkout.refused("lock")
    assert said == (
        "smokehouse: tiny: lock unchanged: environments/tiny/environment.yml:10: delta==1.0: expected an sdist that is built "
        f"with its build-system.requires alone, found one whose build {found}; remove it, and add a wheel of it with "
        "--with WHEEL#sha256=HEX, or require a version that has a wheel"
    )
    assert lock_files(checkout) == before


def test_what_another_build_requires_does_not_help(checkout: TestCheckout, index: Index) -> None:
    index.add("helper", code="")
    listed = OWN_BACKEND.replace("[]", '["helper"]', 1)
    add(checkout, index, "delta", "import helper", pyproject=listed)
    checkout.lock()  # the control: listed, it is found
    assert [*pins(checkout.build_pins.read_text())] == ["helper"]
    add(checkout, index, "epsilon", "import helper")
    assert "epsilon==1.0: expected an sdist" in checkout.refused("lock")


def test_backend_that_is_not_required(checkout: TestCheckout, index: Index) -> None:
    add(checkout, index, "delta", "", pyproject='[build-system]\nrequires = []\nbuild-backend = "backend.api:main"\n')
    assert "build imports backend, which its build-system.requires does not list" in checkout.refused("lock")


def test_what_a_build_requests_is_locked(checkout: TestCheckout, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("helper", code="")
    add(checkout, index, "delta", f"{REQUESTS_HOOK}return ['helper>=1']")
    checkout.lock()
    text = checkout.build_pins.read_text()
    assert [*pins(text)] == ["helper"]
    assert "# via delta" in text
    for name, value in checkout.environ.items():
        monkeypatch.setenv(name, value)
    checkout.installed.parent.mkdir(parents=True)
    uv.create_environment(checkout.installed, "3.11")
    without = checkout.root / "without.txt"
    without.write_text("")
    with pytest.raises(UserError, match="helper"):  # the control: it is what the build needs
        uv.install(checkout.installed, checkout.pins, without, ["delta"])
    uv.install(checkout.installed, checkout.pins, checkout.build_pins, ["delta"])


def test_build_that_requests_others_each_time(checkout: TestCheckout, index: Index) -> None:
    index.add("helper", code="")
    add(checkout, index, "delta", f"import time\n{REQUESTS_HOOK}return ['helper>=0.%d' % time.time_ns()]")
    assert "environment.yml:10: delta: the build requests other packages each time; pin" in checkout.refused("lock")


def test_same_build_is_tried_once(checkout: TestCheckout, index: Index) -> None:
    index.add("helper", "1.0", code="")
    add(checkout, index, "delta", "", pyproject=OWN_BACKEND.replace("[]", '["helper"]', 1))
    tried = "smokehouse: building delta==1.0 on trial\n"
    assert [checkout.run("lock").stderr.count(tried) for _ in range(2)] == [1, 0]
    index.add("helper", "1.1", code="raise ImportError('broken')")  # listed later
    assert checkout.run("lock").stderr.count(tried) == 1


def test_accelerator_that_a_user_chose_reaches_no_build(checkout: TestCheckout, index: Index) -> None:
    """With it deepspeed's setup.py imports torch, which is not there."""
    add(checkout, index, "delta", "import os\nassert 'DS_ACCELERATOR' not in os.environ")
    ended = checkout.run("lock", DS_ACCELERATOR="cpu")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def trial(tmp_path: Path, uv_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that tries to build an sdist with these bytes, which must be refused, and returns the refusal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
    monkeypatch.setenv("UV_OFFLINE", "1")

    def refused(data: bytes, suffix: str = ".tar.gz") -> str:
        file = tmp_path / f"delta-1.0{suffix}"
        file.write_bytes(data)
        artefact = Artefact(file.name, file.as_uri(), hashlib.sha256(data).hexdigest(), len(data))
        package = Resolved("delta", "1.0", "", (artefact,), ())
        inputs = Inputs("environment.yml", (), "3.11", f"{platform.machine()}-manylinux_2_28", date(2025, 3, 15))
        with pytest.raises(UserError) as refusal:
            trial_build.further_requirements(inputs, [package], [], {})
        return str(refusal.value)

    return refused


def tar(*members: tarfile.TarInfo) -> bytes:
    """Return an sdist with a pyproject.toml and `members`."""
    data = io.BytesIO(gzip.decompress(sdist("delta", "1.0", {"pyproject.toml": OWN_BACKEND, "own.py": BACKEND})))
    with tarfile.open(fileobj=data, mode="a") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return data.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    """Return a member of a tar archive."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/tmp/outside"),
        member("delta-1.0/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("delta-1.0/link", type=tarfile.SYMTYPE, linkname="../../outside"),
        member("delta-1.0/device", type=tarfile.CHRTYPE),
        member("another/top"),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_hostile_members(trial: Callable[..., str], tmp_path: Path, bad: tarfile.TarInfo) -> None:
    assert re.fullmatch(r"delta-1\.0\.tar\.gz: invalid source distribution \(.*\); pin another version", trial(tar(bad)))
    assert not (tmp_path / "outside").exists()


def test_archives_that_would_fill_the_disk(trial: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("delta-1.0/pyproject.toml", OWN_BACKEND)
        archive.writestr("delta-1.0/zeros", bytes(1 << 20))
    monkeypatch.setattr(sdist_module, "_LARGEST_TO_BUILD", 1 << 19)
    expected = "expected at most 50000 files and 0 GiB unpacked, found more"
    assert expected in trial(bomb.getvalue(), ".zip")
    assert expected in trial(tar(member("delta-1.0/zeros", size=1 << 20)))
    monkeypatch.setattr(sdist_module, "_LARGEST_TO_BUILD", 1 << 30)
    monkeypatch.setattr(sdist_module, "_MOST_MEMBERS", 10)
    assert "expected at most 10 files" in trial(tar(*(member(f"delta-1.0/{number}") for number in range(20))))


@pytest.mark.parametrize(
    ("pyproject", "message"),
    [
        ('build-backend = "os; x"', "build-system.build-backend: expected module:object, found 'os; x'; pin"),
        ("build-backend = 3", "build-system.build-backend: expected a list of text; pin"),
        ('build-backend = "own"\nbackend-path = [".."]', "build-system.backend-path: expected folders in it; pin"),
        ('build-backend = "own"\nbackend-path = ["/tmp"]', "build-system.backend-path: expected folders in it; pin"),
        ('build-backend = "own"\nbackend-path = "."', "build-system.backend-path: expected a list of text; pin"),
    ],
)
def test_invalid_build_systems(trial: Callable[..., str], pyproject: str, message: str) -> None:
    assert message in trial(sdist("delta", "1.0", {"pyproject.toml": f"[build-system]\nrequires = []\n{pyproject}\n"}))


@pytest.mark.parametrize("requests", ["[1]", "{'a': 1}", "'text'", "['x' * (1 << 20)]"])
def test_backend_that_answers_nonsense(trial: Callable[..., str], requests: str) -> None:
    files = {"pyproject.toml": OWN_BACKEND, "own.py": f"{REQUESTS_HOOK}return {requests}\n"}
    assert "from its build backend, found other data; pin another version" in trial(sdist("delta", "1.0", files))


def test_backend_without_end_is_stopped(trial: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uv, "_BUILD_STEP_DEADLINE", 2.0)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    files = {"pyproject.toml": OWN_BACKEND, "own.py": f"open({str(fifo)!r}).read()\n"}  # nobody ever writes to it
    assert "python timed out after 2 s and was stopped" in trial(sdist("delta", "1.0", files))


def test_lock_for_another_machine_says_that_it_was_not_tried(checkout: TestCheckout, index: Index, channel: Channel) -> None:
    machine = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    add(checkout, index, "delta", "import torch")
    checkout.edit(checkout.stack, "x86_64-manylinux_2_28", f"{machine}-manylinux_2_28")
    ended = checkout.run("lock", "--channel", str(channel.folder))
    assert (
        f"smokehouse: delta==1.0: not built on trial: it is for {machine}, this machine is {platform.machine()}\n"
        in ended.stderr
    )
