"""Run other programs with a deadline, leaving no process behind."""

import ctypes
import os
import pty
import re
import select
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smokehouse import clock
from smokehouse.console import is_terminal
from smokehouse.errors import UserError

_GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_MOST = 256 << 20  # bytes of output
_CHUNK = 65536
_PR_SET_PDEATHSIG = 1  # of sys/prctl.h


class _TooMuchError(Exception):
    """A program wrote more than can be kept."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended: its exit code and output."""

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
    """Run `command` to its end with the input `stdin`, and return its exit code and output.

    With `progress`, the program shows its progress where a person watches at a terminal. It keeps the file descriptors
    `pass_fds` open. Raises UserError when it has not ended after `deadline` seconds, or writes without end; on that and any
    other exception, it and every process that it started are ended.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # Python then takes every exit status for 0
        raise UserError(
            f"{Path(command[0]).name}: SIGCHLD is ignored, so that no exit status can be read; reset it (trap - CHLD)"
        )
    interactive = progress and is_terminal()
    master, slave = pty.openpty() if interactive else (None, subprocess.PIPE)
    try:
        # A list of arguments, which no shell interprets.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if interactive else subprocess.PIPE,
            stderr=slave,
            env=environ,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    finally:
        if interactive:
            os.close(slave)
    try:
        if master is None:
            stdout, stderr = (data.decode(errors="replace") for data in _communicate(process, stdin.encode(), deadline))
        else:
            stdout, stderr = "", _relay(master, clock.now() + deadline)
            process.wait(timeout=deadline)
    except (subprocess.TimeoutExpired, TimeoutError):
        _end(process)
        raise UserError(f"{Path(command[0]).name} timed out after {deadline:.0f} s and was stopped; try again") from None
    except _TooMuchError:
        _end(process)
        raise UserError(
            f"{Path(command[0]).name}: expected at most {_MOST >> 20} MiB of output, found more; check what it runs"
        ) from None
    except BaseException:
        _end(process)
        raise
    finally:
        if master is not None:
            os.close(master)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
    return Ended(process.returncode, stdout, stderr)


def _communicate(process: subprocess.Popen[bytes], stdin: bytes, deadline: float) -> tuple[bytes, bytes]:
    """Return the output of a program; raises TimeoutExpired where it runs on after `deadline` seconds, and _TooMuchError."""
    assert process.stdout
    assert process.stderr
    until, rest = clock.now() + deadline, memoryview(stdin)
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as waiting:
        for stream in said:
            waiting.register(stream, selectors.EVENT_READ)
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            waiting.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        while waiting.get_map():
            left = until - clock.now()
            ready = waiting.select(max(0.0, left))
            if not ready and left <= 0:  # what it said while this process was stopped counts before the clock
                raise subprocess.TimeoutExpired(process.args, deadline)
            for key, _ in ready:
                if key.fd in said:
                    data = os.read(key.fd, _CHUNK)
                    said[key.fd] += data
                    if sum(map(len, said.values())) > _MOST:
                        raise _TooMuchError
                    if not data:
                        waiting.unregister(key.fd)
                elif not (rest := _written(key.fd, rest)):
                    waiting.unregister(key.fd)
                    process.stdin.close()  # type: ignore[union-attr]
    process.wait(max(_GRACE, until - clock.now()))
    stdout, stderr = said.values()
    return bytes(stdout), bytes(stderr)


def _written(descriptor: int, rest: memoryview) -> memoryview:
    """Write some of the `rest` of a program's input, and return what is left of it; nothing where nobody reads on."""
    try:
        return rest[os.write(descriptor, rest[:_CHUNK]) :]
    except BrokenPipeError:
        return rest[:0]


def _relay(master: int, until: float) -> str:
    """Copy a pseudo-terminal to stderr up to the first error, which the caller words; return all of it as text."""
    output = b""
    while True:
        left = until - clock.now()
        if not select.select([master], [], [], max(0.0, left))[0]:
            if left <= 0:
                raise TimeoutError
            continue
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux raises EIO when the other end is closed
            chunk = b""
        if not chunk:
            break
        output += chunk
        if not re.search(rb"[\r\n](\x1b\[[0-9;?]*[A-Za-z])*error", output):
            os.write(2, chunk)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n")


def end_with_parent(number: signal.Signals = signal.SIGHUP) -> None:
    """Have the kernel send this process a signal when its parent is gone, however that ended. See: prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and every process that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
