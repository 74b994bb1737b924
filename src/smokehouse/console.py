"""What the builder prints for a person at a terminal: status lines, sizes and progress bars.

Results go to standard output and belong to `cli`; everything here goes to standard error.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Advance = Callable[[int], None]

# The noxfile sets it to nox.
STARTED_BY = "SMOKEHOUSE_STARTED_BY"


# A log shows that something goes on, and stays short.
SECONDS_BETWEEN_LINES = 10.0


def status(message: str) -> None:
    """Print `message` as a status line, without control characters, which a terminal would obey."""
    shown = "".join(character if character.isprintable() else "?" for character in message)
    print(f"smokehouse: {shown}", file=sys.stderr, flush=True)


def as_typed(verb: str, *arguments: str) -> str:
    """Return the command line of `verb` as this user types it: through nox where the noxfile started this process."""
    if os.environ.get(STARTED_BY) == "nox":
        return " ".join(["nox -s", verb, *(["--", *arguments] if arguments else [])])
    return " ".join(["smokehouse", verb, *arguments])


def size(count: float) -> str:
    """Return `count` bytes in decimal units, such as "1.5 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def is_terminal() -> bool:
    """Return whether a person reads standard error at a terminal."""
    return sys.stderr.isatty()


class _Lines:
    """Progress as status lines, for logs: at most one in `SECONDS_BETWEEN_LINES`, from any thread."""

    def __init__(self, label: str, total: int, unit: Literal["bytes", "items"]) -> None:
        self._label, self._unit, self._total = label, unit, total
        self._done, self._last, self._lock = 0, time.monotonic(), threading.Lock()

    def __call__(self, count: int) -> None:
        """Advance by `count`."""
        with self._lock:
            self._done += count
            if time.monotonic() - self._last < SECONDS_BETWEEN_LINES:
                return
            self._last = time.monotonic()
            done, total = (size(n) if self._unit == "bytes" else str(n) for n in (self._done, self._total))
        status(f"{self._label}: {done}{f' of {total}' if self._total else ''}")


@contextmanager
def heartbeat(label: str) -> Iterator[None]:
    """Print a status line with `label` and the time since every few seconds, without a terminal; for what has no progress."""
    if is_terminal():
        yield
        return
    ended, began = threading.Event(), time.monotonic()

    def beat() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            status(f"{label}, for {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress(label: str, total: int, unit: Literal["bytes", "items"]) -> Iterator[Advance]:
    """Show a progress bar called `label` and yield a function that advances it by a number of `unit`.

    `total` 0 is unknown. Without a terminal, a status line says every few seconds how far it is.
    """
    if not is_terminal():
        yield _Lines(label, total, unit)
        return
    # rich takes longer to import than most commands run.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bytes_columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = bytes_columns if unit == "bytes" else (BarColumn(), MofNCompleteColumn())
    with Progress(label, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total or None)
        yield lambda count: bar.advance(task, count)
