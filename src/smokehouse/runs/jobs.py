"""What handing a smoke test to any engine takes: the values of its options, and an end that leaves no job behind."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from smokehouse.errors import UserError

# For a smoke test whose nodes may pull an image first, each for some minutes. The user's own comes after it, and counts.
JOIN = ("--join-timeout", "600")


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM end this as Ctrl-C does, so that no job is left on the cluster."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """Return the value of an option that has to be one of `known`; raises UserError."""
    if value not in known:
        raise UserError(f"{option} {value}: expected {', '.join(known)}, found another; give one of them")
    return value


def number(option: str, text: str, least: int, most: int) -> int:
    """Return the value of an option that has to be a number from `least` to `most`; raises UserError."""
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UserError(f"{option} {text}: expected a number from {least} to {most}, found another; correct it")
    return int(text)
