"""Exclusive use of a folder among processes."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smokehouse.console import status
from smokehouse.errors import UserError

_PATIENCE = 2 * 3600.0  # seconds to wait for another process that installs the same environment


@contextmanager
def exclusive(path: Path, doing: str) -> Iterator[int]:
    """Hold the right to be `doing`, waiting for whoever holds it; yields the descriptor that holds it."""
    with path.open("a+") as file:
        until = time.monotonic() + _PATIENCE
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text().strip() or "another process"
                if time.monotonic() > until:
                    raise UserError(f"{holder} is {doing} without end; look at it or end it") from None
                if not told:
                    status(f"waiting for {holder}, which is {doing}")
                    told = True
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()
