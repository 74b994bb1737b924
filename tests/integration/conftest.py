"""One container engine for all tests of images, and the programs that they need."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..unit import conftest as builder
from ..unit.conftest import TestCheckout
from . import real, registries
from .debian import unpack
from .engine import Engine, present, started
from .registries import Proxy

# A user with no name, where nothing but /tmp can be written to and there is no network.
STRANGER = ["--user", "54321:54321", "--read-only", "--network", "none", "--tmpfs", "/tmp:rw,exec,mode=1777"]

# Becomes the user `builder` with UID $2, IDs for a user namespace, and a folder, $1. $3 are parents of files that the user
# needs to read, which other users cannot search outside of this mount namespace; $4 are the topmost of these.
_AS_BUILDER = """
set -e
folder=$1 uid=$2 closed=$3 tops=$4; shift 4
mount -t tmpfs tmpfs "$folder/mounts"
over() {
    count=$((${count:-0} + 1)); mkdir "$folder/mounts/$count" "$folder/mounts/$count.work"
    mount -t overlay -o "lowerdir=$1,upperdir=$folder/mounts/$count,workdir=$folder/mounts/$count.work" overlay "$1"
}
for top in $tops; do over "$top"; done
[ -z "$closed" ] || chmod a+rx $closed
over /etc
echo "builder:x:$uid:$uid::$folder:/bin/sh" >> /etc/passwd
echo "${ids:+builder:$ids}" > /etc/subuid
cp /etc/subuid /etc/subgid
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"
"""
UID = 54321

channel, checkout, index, server = builder.channel, builder.checkout, builder.index, builder.server
packages, uv_cache, full_disk = builder.packages, builder.uv_cache, builder.full_disk


@pytest.fixture(scope="session")
def programs(root: Path) -> Path:
    """The folder that programs are unpacked to, which is kept for the next run."""
    return root / "build" / "programs"


@pytest.fixture(scope="session")
def engine(programs: Path) -> Iterator[Engine]:
    """The machine's engine, or one of the tests' own."""
    if found := present():
        yield found
        if _built:
            found.docker("rmi", "--force", *tags(found), check=False)
        return
    with started(programs / "engine") as engine:
        yield engine


@pytest.fixture(scope="session")
def cosign(programs: Path) -> Path:
    """The folder of cosign 3, from Debian 14."""
    return unpack(("cosign/forky",), programs / "cosign-3") / "bin"


@pytest.fixture(scope="session")
def cosign_2(programs: Path) -> Path:
    """The folder of cosign 2.5, from Debian 13."""
    return unpack(("cosign/trixie",), programs / "cosign-2") / "bin"


@pytest.fixture(scope="session")
def oras(programs: Path) -> Path:
    """The program oras, from Debian 14."""
    return unpack(("oras/forky",), programs / "oras") / "bin" / "oras"


@pytest.fixture
def keys(cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two key pairs, ours and other; their password is in the environment and cosign on PATH."""
    monkeypatch.setenv("PATH", f"{cosign}:{os.environ['PATH']}")
    monkeypatch.setenv("COSIGN_PASSWORD", "a password")
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("ours", "other"):
        key_pair(folder, dict(os.environ), name)
    return folder


def key_pair(folder: Path, environ: dict[str, str], name: str) -> None:
    """Make name.key and name.pub in `folder`; `environ` has the password, and cosign on PATH."""
    command = [shutil.which("cosign", path=environ["PATH"]) or "cosign", "generate-key-pair", "--output-key-prefix", name]
    subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True, timeout=60)


def add_planner(root: Path, checkout: TestCheckout) -> None:
    """Add the smoke tests of this repository to a checkout, but for those that its own `__main__` replaces."""
    unwanted = shutil.ignore_patterns("__main__.py", "machine", "__pycache__")
    shutil.copytree(root / "smoke_tests", checkout.root / "smoke_tests", ignore=unwanted, dirs_exist_ok=True)


@dataclass(frozen=True)
class Made:
    """An assembled image of tiny, its checkout, and the SHA-256 of its lock.json."""

    checkout: TestCheckout
    layout: Path
    lock: str


@dataclass(frozen=True)
class Baked:
    """An image of tiny that BuildKit built on another engine to a layout, and what was printed of it."""

    layout: Path
    printed: dict[str, Any]


_made: list[Made] = []
_baked: list[Baked] = []
_built: list[dict[str, Any]] = []  # what `image` built in the engine
_layers: list[tempfile.TemporaryDirectory[str]] = []  # one for all tests of a run


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One image for all tests; its checkout has no index any more, but the bundle that the image was built from."""
    if not _made:
        # No engine is needed to assemble an image.
        fixtures = [request.getfixturevalue(name) for name in ("checkout", "root", "mmdebstrap")]
        tiny = locked_tiny(fixtures[0], fixtures[1], None, fixtures[2])
        folder = tmp_path_factory.mktemp("made")
        add_planner(request.getfixturevalue("root"), tiny)
        real.run(tiny, "build", "tiny", "--output", f"oci:{folder / 'layout'}")
        shutil.copytree(tiny.root, folder / "checkout", symlinks=True)
        environ = tiny.environ | {"UV_OFFLINE": "1", "SMOKEHOUSE_CHANNEL": str(folder / "none")}
        checkout = TestCheckout(folder / "checkout", environ, tiny.server)
        _made.append(Made(checkout, folder / "layout", hashlib.sha256(checkout.lock_json.read_bytes()).hexdigest()))
    return _made[0]


@pytest.fixture(scope="session")
def elsewhere(engine: Engine, programs: Path) -> Iterator[Engine]:
    """Another engine, which is this one's context `elsewhere`."""
    with started(programs / "engine") as other:
        engine.docker("context", "create", "elsewhere", "--docker", f"host={other.environ['DOCKER_HOST']}")
        yield other
        engine.docker("context", "rm", "--force", "elsewhere")


@pytest.fixture
def baked(tiny: TestCheckout, elsewhere: Engine, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """One image by BuildKit for all tests, which none changes: it takes a minute."""
    if not _baked:
        layout = tmp_path_factory.mktemp("baked") / "layout"
        _baked.append(Baked(layout, built(tiny, "--builder", "elsewhere", "--output", f"oci:{layout}")))
    return _baked[0]


@pytest.fixture(scope="session")
def registry_port(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A registry for all tests, each with its own repositories."""
    store = tmp_path_factory.mktemp("store")
    with registries.started(programs / "registry", store, tmp_path_factory.mktemp("registry")) as port:
        yield port
    shutil.rmtree(store)  # gigabytes, which pytest would keep for three runs


@pytest.fixture
def registry(registry_port: int) -> Iterator[Proxy]:
    """The registry, behind a proxy that can break connections."""
    with registries.in_front(registry_port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def mmdebstrap(programs: Path) -> str:
    """The folder of mmdebstrap."""
    return str(unpack(("mmdebstrap/bookworm",), programs / "mmdebstrap") / "bin")


@pytest.fixture(scope="session")
def uidmap(programs: Path) -> str:
    """The folder of newuidmap."""
    return str(unpack(("uidmap/bookworm",), programs / "uidmap") / "bin")


def as_builder(folder: Path, command: Sequence[str], reach: Sequence[Path], ids: str = "100000:65536") -> list[str]:
    """The command line that runs `command` as a user who is not root and owns nothing but `folder`.

    The user can read the folders in `reach`, and use `ids` in a user namespace.
    """
    (folder / "mounts").mkdir(exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    ways = {parent for path in (*reach, Path(sys.executable).resolve()) for parent in (path, *path.parents)}
    closed = [way for way in sorted(ways) if way.is_dir() and not way.stat().st_mode & 0o001]
    tops = [way for way in closed if not {*way.parents} & {*closed}]
    shown = (" ".join(map(str, ways)) for ways in (closed, tops))
    return ["env", f"ids={ids}", "unshare", "--mount", "sh", "-c", _AS_BUILDER, "sh", str(folder), str(UID), *shown, *command]


@pytest.fixture
def tiny(checkout: TestCheckout, root: Path, engine: Engine, mmdebstrap: str) -> TestCheckout:
    """A checkout whose environment `tiny` is locked and can be built to an image of a few small wheels."""
    return locked_tiny(checkout, root, engine, mmdebstrap)


def locked_tiny(checkout: TestCheckout, root: Path, engine: Engine | None, mmdebstrap: str) -> TestCheckout:
    """Let `checkout` build, on `engine` if there is one; bases are shared with the checkout at `root`, and kept."""
    shutil.copytree(root / "docker", checkout.root / "docker", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "build" / "base").mkdir(parents=True, exist_ok=True)
    (checkout.root / "build").mkdir()
    (checkout.root / "build" / "base").symlink_to(root / "build" / "base")
    # Layers are kept by what they are made from, so tests can share them; tests of how they are made build with --no-cache.
    if not _layers:
        _layers.append(tempfile.TemporaryDirectory(prefix="smokehouse-layers-"))
    (checkout.root / "build" / "layers").symlink_to(_layers[0].name)
    checkout.environ.update(_with_engine(engine, mmdebstrap))
    checkout.lock()
    return checkout


def _with_engine(engine: Engine | None, mmdebstrap: str) -> dict[str, str]:
    """The variables of a checkout that builds images, on `engine` if there is one."""
    environ = engine.environ if engine else dict(os.environ)
    found = {name: environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in environ}
    return found | {"PATH": f"{mmdebstrap}:{environ['PATH']}"}


def tags(engine: Engine) -> list[str]:
    """Return the names of all images of tiny in the engine."""
    return engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "tiny").stdout.split()


@pytest.fixture
def image_checkout(made: Made, engine: Engine, mmdebstrap: str) -> TestCheckout:
    """The checkout of `image` and of `made`, which no test changes, with the engine."""
    environ = made.checkout.environ | _with_engine(engine, mmdebstrap)
    return TestCheckout(made.checkout.root, environ, made.checkout.server)


@pytest.fixture
def image(image_checkout: TestCheckout, engine: Engine) -> str:
    """The name of one image of tiny for all tests, which none changes; it is built again where one removed it."""
    if _built:
        found = engine.docker("image", "inspect", "--format", "{{.Id}}", _built[0]["place"], check=False).stdout.strip()
        if found in (_built[0]["id"], _built[0]["digest"]):
            return str(_built[0]["place"])
    _built[:] = [built(image_checkout)]
    return str(_built[0]["place"])


def built(checkout: TestCheckout, *options: str) -> dict[str, Any]:
    """Build tiny, which must succeed, and return what was built."""
    ended = checkout.run("build", "tiny", "--json", *options)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
