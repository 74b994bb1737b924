"""What the builder prints for a person at a terminal: status lines, sizes and progress bars.

Results go to standard output and belong to `cli`; everything here goes to standard error.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Advance = Callable[[int], None]

# The noxfile sets it to nox.
STARTED_BY = "SMOKEHOUSE_STARTED_BY"


def status(message: str) -> None:
    """Print `message` as a status line."""
    print(f"smokehouse: {message}", file=sys.stderr, flush=True)


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


@contextmanager
def progress(label: str, total: int, unit: Literal["bytes", "items"]) -> Iterator[Advance]:
    """Show a progress bar called `label` and yield a function that advances it by a number of `unit`.

    `total` 0 is unknown. Without a terminal, nothing is shown.
    """
    if not is_terminal():
        yield lambda count: None
        return
    # rich takes longer to import than most commands run.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bytes_columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = bytes_columns if unit == "bytes" else (BarColumn(), MofNCompleteColumn())
    with Progress(label, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total or None)
        yield lambda count: bar.advance(task, count)
