"""Whether this machine's clock is set: nodes of a job compare times, and TLS refuses certificates by them."""

import ctypes
from dataclasses import dataclass

from smoke_tests.machine.finding import Finding, ok

_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
_MOST_ERROR = 1_000_000  # microseconds; nodes further apart disagree about a deadline


class _Timex(ctypes.Structure):
    """The beginning of struct timex, with room for the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("most_error", ctypes.c_long),
        ("error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


@dataclass(frozen=True)
class Clock:
    """What the kernel says of its clock: whether something keeps it right, and by how many microseconds it may be wrong."""

    synchronised: bool
    most_error: int


def read() -> Clock | None:
    """Return the state of the kernel's clock, None where it does not say. Changes nothing. See: adjtimex(2)."""
    state = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        return None
    return Clock(not state.status & _UNSYNCHRONISED, state.most_error)


def judge(clock: Clock | None) -> Finding:
    """Return what follows from the state of a clock."""
    if clock is None:
        return ok("clock", "the kernel does not say whether it is synchronised")
    fix = "start chronyd or systemd-timesyncd on the machine"
    if not clock.synchronised:
        return Finding("warn", "not synchronised", "clock", fix)
    if clock.most_error > _MOST_ERROR:
        return Finding("warn", f"may be wrong by {clock.most_error / 1e6:.1f} s", "clock", fix)
    return ok("clock", f"synchronised, within {clock.most_error / 1e3:.0f} ms")
