"""Locks whose conda packages are edited."""

from smokehouse.locks import Lock

from .conftest import TestCheckout


def read(checkout: TestCheckout) -> Lock:
    """Return the lock.json of `checkout`."""
    return Lock.model_validate_json(checkout.lock_json.read_bytes())


def change_conda(checkout: TestCheckout, name: str, **changes: object) -> None:
    """Change what lock.json says of one conda package."""
    lock = read(checkout)
    conda = tuple(package.model_copy(update=changes) if package.name == name else package for package in lock.conda)
    checkout.lock_json.write_text(lock.model_copy(update={"conda": conda}).text())
