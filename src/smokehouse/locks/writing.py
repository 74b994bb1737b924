"""One writer of a lock at a time, whose files belong together."""

from collections.abc import Iterator
from contextlib import contextmanager

from smokehouse.checkout import Checkout
from smokehouse.storage import exclusive


@contextmanager
def writing(checkout: Checkout, name: str) -> Iterator[None]:
    """Wait until no other process writes the lock called `name`, and let none write it meanwhile; raises UserError."""
    checkout.build.mkdir(parents=True, exist_ok=True)
    with exclusive(checkout.build / f".lock-{name.replace('/', '-')}.lock", f"writing the lock of {name}"):
        yield
