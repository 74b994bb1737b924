"""Locks whose conda packages are edited."""

from smokehouse.locks import Lock

from .conftest import TestCheckout


def read(checkout: TestCheckout) -> Lock:
    """Return the lock.json of `checkout`."""
    return Lock.model_validate_json(checkout.lock_json.read_bytes())


def keep_only(checkout: TestCheckout, name: str, **changes: object) -> None:
    """Remove all conda packages but one from the lock, and change that one."""
    lock = read(checkout)
    [package] = [package.model_copy(update=changes) for package in lock.conda if package.name == name]
    checkout.lock_json.write_text(lock.model_copy(update={"conda": (package,)}).text())
