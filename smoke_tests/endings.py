"""How this process ends, and what it survives: lost output, signals, the end of its parent.

Output is no part of a verdict: a closed pipe or a full disk under it loses lines, not the report.
"""

import atexit
import ctypes
import errno
import io
import os
import signal
import sys
from typing import Any, NoReturn

# What ends a run in order; a terminal sends the last two.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1
_REMEDIES = {
    "free disk space": (errno.ENOSPC, errno.EDQUOT),
    "fix permissions": (errno.EACCES, errno.EPERM, errno.EROFS),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "raise the limit of file sizes (ulimit -f)": (errno.EFBIG,),
    "raise the limit of processes (ulimit -u)": (errno.EAGAIN,),
    "free memory": (errno.ENOMEM,),
}


class _Tolerant(io.TextIOWrapper):
    """A text stream that drops what cannot be written, and writes what its encoding lacks as escapes."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            return


def keep_output_harmless() -> None:
    """Open /dev/null for standard streams that are closed, and make the others tolerant."""
    # Otherwise the next file that is opened gets the number of a standard stream, and what libraries print goes there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = io.TextIOWrapper(io.FileIO(os.devnull, "w"), "utf-8")
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Tolerant):
            lines, encoding = stream.line_buffering, stream.encoding
            setattr(sys, name, _Tolerant(stream.detach(), encoding, "backslashreplace", line_buffering=lines))


def end_in_order() -> None:
    """Have signals end this process as an exception does, and the end of its parent send one; nohup prevents that."""
    for number in SIGNALS[:2] + SIGNALS[3:]:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def leave(code: int) -> NoReturn:
    """End this process with `code` and without tearing its modules down.

    With torch, transformers and deepspeed imported that takes a second of CPU, and some of their libraries print what they
    leaked. The report is written, and no child is left, before the end; what libraries do at exit, such as removing their
    temporary folders, is done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def remedy(error: OSError) -> str:
    """Return what to do about an error of the system."""
    return next((text for text, numbers in _REMEDIES.items() if error.errno in numbers), "fix it and run it again")
