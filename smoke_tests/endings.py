"""How this process ends, and what it survives: signals, and the end of its parent."""

import atexit
import ctypes
import errno
import os
import signal
import sys
from typing import NoReturn

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
