"""Locks whose conda half is changed by hand."""

from smokehouse.locks.model import Lock

from .conftest import TestCheckout


def read(checkout: TestCheckout) -> Lock:
    """The lock.json of `checkout`."""
    return Lock.model_validate_json(checkout.pins.with_name("lock.json").read_bytes())


def keep(checkout: TestCheckout, name: str, **changes: object) -> None:
    """Leave one conda package in the lock, with `changes`."""
    manifest = read(checkout)
    [package] = [package.model_copy(update=changes) for package in manifest.conda if package.name == name]
    checkout.pins.with_name("lock.json").write_text(manifest.model_copy(update={"conda": (package,)}).text())
