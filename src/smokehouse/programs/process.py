"""Running other programs: with a deadline, and never leaving one behind."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smokehouse.console import is_terminal
from smokehouse.errors import UserError

_GRACE = 5.0  # seconds between asking a program to end and ending it


@dataclass(frozen=True)
class Ended:
    """How a program ended and what it said."""

    code: int
    stdout: str
    stderr: str


def run(
    command: Sequence[str | Path],
    *,
    deadline: float,
    environ: Mapping[str, str],
    cwd: Path,
    progress: bool = False,
    pass_fds: Sequence[int] = (),
    stdin: str = "",
) -> Ended:
    """Run `command` to its end, with `stdin` as its input, and return what it said.

    With `progress`, a program that runs for a person at a terminal shows its progress there. The file descriptors in
    `pass_fds` stay open in it. Raises UserError when the program does not end within `deadline` seconds; it, and every
    process it started, is then ended, as on any other exception.
    """
    shown = progress and is_terminal()
    master, slave = pty.openpty() if shown else (None, subprocess.PIPE)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if shown else subprocess.PIPE,
            stderr=slave,
            env=environ,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    finally:
        if shown:
            os.close(slave)
    try:
        if master is None:
            stdout, stderr = (data.decode(errors="replace") for data in process.communicate(stdin.encode() or None, deadline))
        else:
            stdout, stderr = "", _relay(master, time.monotonic() + deadline)
            process.wait(timeout=deadline)
    except (subprocess.TimeoutExpired, TimeoutError):
        _end(process)
        raise UserError(f"{Path(command[0]).name} timed out after {deadline:.0f} s and was stopped; try again") from None
    except BaseException:
        _end(process)
        raise
    finally:
        if master is not None:
            os.close(master)
    return Ended(process.returncode, stdout, stderr)


def _relay(master: int, until: float) -> str:
    """Copy a pseudo-terminal to stderr up to the first error line, which is ours to word; return all of it as text."""
    heard = b""
    while True:
        if not select.select([master], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            chunk = b""
        if not chunk:
            break
        heard += chunk
        if not re.search(rb"[\r\n](\x1b\[[0-9;?]*[A-Za-z])*error", heard):
            os.write(2, chunk)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", heard.decode(errors="replace")).replace("\r", "\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
