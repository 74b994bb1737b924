"""One container engine for all tests of images, and the programs that they need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import registry as registries
from .engine import Engine, present, started
from .registry import Proxy


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
def registry_port(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A registry for all tests, each of which uses repositories of its own."""
    with registries.started(
        programs / "registry", tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("registry")
    ) as port:
        yield port


@pytest.fixture
def registry(registry_port: int) -> Iterator[Proxy]:
    """That registry, behind a proxy whose connections can be made to break."""
    with registries.in_front(registry_port) as proxy:
        yield proxy
