"""Exclusive use of a folder by one process."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smokehouse.console import status
from smokehouse.errors import UserError

_DEADLINE = 2 * 3600.0  # seconds to wait for another process; installing takes long


@contextmanager
def exclusive(path: Path, activity: str) -> Iterator[int]:
    """Lock the file `path` for an `activity`, such as "installing x", waiting for the process that has the lock.

    Yields the file descriptor; the lock lasts until every copy of it is closed. Raises UserError after two hours.
    """
    with path.open("a+") as file:
        until = time.monotonic() + _DEADLINE
        announced = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text().strip() or "another process"
                if time.monotonic() > until:
                    raise UserError(
                        f"{path}: timed out after {_DEADLINE / 3600:.0f} h; {holder} is still {activity}; end it"
                    ) from None
                if not announced:
                    status(f"waiting for {holder}, which is {activity}")
                    announced = True
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()
