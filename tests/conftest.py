"""What all tests share."""

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Give the processes that tests start the default dispositions of signals, whatever this process was given.

    A shell starts a background job with SIGINT ignored, and what is ignored stays so in every child: one that is
    interrupted would never end. A handler, in contrast, becomes the default in a child.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return Path(__file__).parents[1]
