"""What all tests share."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Give the processes that tests start the default dispositions of signals, whatever this process was given.

    A shell starts a background job with SIGINT ignored, and what is ignored stays so in every child: one that is
    interrupted would never end. A handler, in contrast, becomes the default in a child.

    Python's own variables of a developer's machine go: PYTHONUNBUFFERED hides output that nobody would see in time elsewhere.
    """
    for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many faults were injected, by kind, and how many of them ended right; then why tests failed, each reason once.

    Of a long output CI keeps the end, where pytest itself has 80 columns of each reason.
    """
    injected, right = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, kind in getattr(report, "user_properties", []):
                if name == "fault" and (report.when == "call" or outcome == "failed"):
                    injected[kind] += 1
                    right[kind] += outcome == "passed"
    if injected:
        terminalreporter.section("faults")
        for kind in sorted(injected):
            terminalreporter.write_line(f"{kind}: {right[kind]} of {injected[kind]} ended right")
        terminalreporter.write_line(f"all: {right.total()} of {injected.total()} ended right")
    reports = [report for outcome in ("failed", "error") for report in terminalreporter.stats.get(outcome, [])]
    crashes = [crash for report in reports if (crash := getattr(report.longrepr, "reprcrash", None))]
    reasons = {crash.message: f"{crash.path}:{crash.lineno}" for crash in crashes}
    if reasons:
        terminalreporter.section("reasons")
    for message, place in [*reasons.items()][:5]:
        terminalreporter.write_line(f"{place}: {message[-2000:]}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return Path(__file__).parents[1]
