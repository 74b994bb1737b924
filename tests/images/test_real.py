"""The image of qwen2.5-vl with the real pip half, built, looked at and proven."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..builder.channel import Channel
from ..builder.conftest import TestHouse
from .conftest import STRANGER
from .engine import Engine
from .real import NAME, furnish, run

MOST = 0.90  # of the sizes of what is locked


@dataclass(frozen=True)
class Real:
    """The image, in a store of the engine."""

    house: TestHouse
    name: str
    digest: str


@pytest.fixture(scope="module")
def real(
    root: Path, engine: Engine, mmdebstrap: str, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    """Locked, built and gone afterwards, with the cache of its build."""
    place = tmp_path_factory.mktemp("real") / "house"
    names = ("DOCKER_HOST", "DOCKER_CONFIG")
    environ = {name: engine.environ[name] for name in names if name in engine.environ}
    path = f"{mmdebstrap}:{engine.environ['PATH']}"
    house = furnish(place, root, Channel(packages).folder, path, environ)
    built = json.loads(run(house, "build", NAME, "--ops", "none", "--json").stdout)
    yield Real(house, built["place"], built["digest"])
    listed = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", NAME).stdout.split()
    engine.docker("rmi", "--force", *listed)
    if engine.store:
        engine.docker("builder", "prune", "--all", "--force")


def test_the_whole_smoke_test_passes_inside(real: Real) -> None:
    """With no network, no name for the user and nothing to write to but /tmp, as `smoke --image` starts it."""
    ended = run(real.house, "smoke", "--image", real.name)
    assert "PASSED" in ended.stdout
    report = json.loads((real.house.root / "build" / "smoke" / f"{NAME}-image" / "report.json").read_text())
    assert (report["verdict"], report["image"]) == ("passed", real.digest)
    lock = (real.house.root / "lockfiles" / NAME / "lock.json").read_bytes()
    assert report["lock"]["lock.json"] == hashlib.sha256(lock).hexdigest()


def test_the_smoke_test_of_the_image_owns_its_options(real: Real) -> None:
    assert "--nonsense" in run(real.house, "smoke", "--image", real.name, "--nonsense", code=2).stderr


def test_the_stack_is_there_without_the_entrypoint_and_the_driver_is_not(real: Real, engine: Engine) -> None:
    code = "import sys, torch, transformers; print(torch.__file__); assert 'smokehouse' not in sys.modules"
    said = engine.docker("run", "--rm", *STRANGER, "--entrypoint", "", real.name, "python", "-c", code).stdout
    assert "/opt/env/lib/python3.11/site-packages/torch/__init__.py" in said
    driver = engine.docker("run", "--rm", *STRANGER, real.name, "sh", "-c", "ldconfig -p | grep -c libcuda.so", check=False)
    assert driver.stdout == "0\n"


def test_it_is_smaller_than_what_it_is_made_of(real: Real, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    again = json.loads(run(real.house, "build", NAME, "--ops", "none", "--json", "--output", f"oci:{layout}").stdout)
    assert again["digest"] == real.digest
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / real.digest.removeprefix("sha256:")).read_text())
    packed = sum(layer["size"] for layer in manifest["layers"])
    lock = json.loads((real.house.root / "lockfiles" / NAME / "lock.json").read_text())
    inside = [entry for entry in lock["conda"] if entry["category"] == "main"] + lock["pip"]
    base = [line.split() for line in (real.house.root / "docker" / "base.lock").read_text().splitlines() if line[0] != "#"]
    locked = sum(entry["size"] for entry in inside) + sum(int(size) for _, _, _, size, _ in base)
    print(f"{packed} bytes packed, {locked} bytes locked, {packed / locked:.3f}")
    assert packed <= MOST * locked
