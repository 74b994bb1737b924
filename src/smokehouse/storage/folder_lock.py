"""Exclusive use of a folder by one process."""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR, ELOOP, ENXIO
from pathlib import Path
from typing import IO

from smokehouse import clock
from smokehouse.console import status
from smokehouse.errors import UserError

_DEADLINE = 2 * 3600.0  # seconds to wait for another process; installing takes long

_LONGEST = 200  # characters of who holds a lock


def _opened(path: Path) -> IO[str]:
    """Open a lock file; raises UserError where it is a link, a folder or a FIFO, and OSError."""
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
    except OSError as broken:
        if broken.errno not in (ELOOP, EISDIR, ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
        os.close(handle)
    raise UserError(f"{path}: expected a lock file or nothing, found a link, folder or FIFO; remove it")


@contextmanager
def exclusive(path: Path, activity: str) -> Iterator[int]:
    """Lock the file `path` for an `activity`, such as "installing x", waiting for the process that has the lock.

    Yields the file descriptor; the lock lasts until every copy of it is closed. Raises UserError after two hours.
    """
    with _opened(path) as file:
        until = clock.now() + _DEADLINE
        announced = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read(_LONGEST).strip() or "another process"
                if clock.now() > until:
                    raise UserError(
                        f"{path}: timed out after {_DEADLINE / 3600:.0f} h; {holder} is still {activity}; end it"
                    ) from None
                if not announced:
                    status(f"waiting for {holder}, which is {activity}")
                    announced = True
                time.sleep(0.1)
        _sign(file)
        yield file.fileno()


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Lock the file `path` where no process has it locked, without waiting, and yield whether this one has it now."""
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        _sign(file)
        yield True


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
