"""One container engine for all tests of images, and the programs that they need."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..builder import conftest as builder
from ..builder.conftest import TestHouse
from .debian import unpack
from .engine import Engine, present, started

# A user with no name, where nothing but /tmp can be written to and there is no network.
STRANGER = ["--user", "54321:54321", "--read-only", "--network", "none", "--tmpfs", "/tmp:rw,exec,mode=1777"]

channel, house, index = builder.channel, builder.house, builder.index
packages, uv_cache = builder.packages, builder.uv_cache


@pytest.fixture(scope="session")
def programs(root: Path) -> Path:
    """The folder of the programs that are unpacked for the tests, kept for the next run."""
    return root / "build" / "programs"


@pytest.fixture(scope="session")
def engine(programs: Path) -> Iterator[Engine]:
    """The machine's engine, or one of the tests' own."""
    if found := present():
        yield found
        return
    with started(programs / "engine") as engine:
        yield engine


@pytest.fixture(scope="session")
def mmdebstrap(programs: Path) -> str:
    """The folder that mmdebstrap is in."""
    return str(unpack(("mmdebstrap/bookworm",), programs / "mmdebstrap") / "bin")


@pytest.fixture
def tiny(house: TestHouse, root: Path, engine: Engine, mmdebstrap: str) -> TestHouse:
    """A house whose environment `tiny` is locked and can be built to an image of a few small wheels."""
    return locked_tiny(house, root, engine, mmdebstrap)


def locked_tiny(house: TestHouse, root: Path, engine: Engine, mmdebstrap: str) -> TestHouse:
    """Make `house` one that can build on `engine`; bases are shared with the checkout, for all tests and the next run."""
    shutil.copytree(root / "docker", house.root / "docker", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "build" / "base").mkdir(parents=True, exist_ok=True)
    (house.root / "build").mkdir()
    (house.root / "build" / "base").symlink_to(root / "build" / "base")
    house.environ.update({name: engine.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in engine.environ})
    house.environ["PATH"] = f"{mmdebstrap}:{engine.environ['PATH']}"
    house.lock()
    return house


@pytest.fixture
def image(tiny: TestHouse, engine: Engine) -> Iterator[str]:
    """The name of an image of tiny, which goes with the test."""
    names = built(tiny)
    yield str(names["place"])
    listed = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "tiny").stdout.split()
    engine.docker("rmi", "--force", *listed)


def built(house: TestHouse, *options: str) -> dict[str, Any]:
    """Build tiny, which must succeed; what was built."""
    ended = house.run("build", "tiny", "--json", *options)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
