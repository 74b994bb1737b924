"""Locks whose conda half is changed by hand."""

from smokehouse.manifest import Manifest

from .conftest import TestHouse


def read(house: TestHouse) -> Manifest:
    """The lock.json of `house`."""
    return Manifest.model_validate_json(house.pins.with_name("lock.json").read_bytes())


def keep(house: TestHouse, name: str, **changes: object) -> None:
    """Leave one conda package in the lock, with `changes`."""
    manifest = read(house)
    [package] = [package.model_copy(update=changes) for package in manifest.conda if package.name == name]
    house.pins.with_name("lock.json").write_text(manifest.model_copy(update={"conda": (package,)}).text())
