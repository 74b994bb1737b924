"""What one rank says of one check, and the wire on which it says it."""

import json
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One rank's finding. `data` is compared between ranks and process groups; `detail` is for people."""

    verdict: str  # passed | failed | known-issue
    detail: str
    data: dict[str, Any] = field(default_factory=dict)


def passed(detail: str, **data: Any) -> Outcome:
    """The check holds on this rank."""
    return Outcome("passed", detail, data)


def failed(detail: str, **data: Any) -> Outcome:
    """The check does not hold on this rank; `detail` says what is wrong and where."""
    return Outcome("failed", detail, data)


def known_issue(detail: str, **data: Any) -> Outcome:
    """The stack does what the environment's known issues say of it."""
    return Outcome("known-issue", detail, data)


def judged(problems: list[str], detail: str, **data: Any) -> Outcome:
    """`failed` with the problems where there are any (the first few in words), `passed` with `detail` where there are none."""
    if not problems:
        return passed(detail, **data)
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return failed("; ".join(problems[:4]) + more, **data)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line: its type and the start of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'…' if len(text) > limit else ''}"


class Channel:
    """A rank's connection to the supervisor: one JSON object a line. A rank that dies closes it, which is how death is seen."""

    def __init__(self, address: str, hello: dict[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address)
        self.send("hello", pid=os.getpid(), **hello)

    def send(self, event: str, **content: Any) -> None:
        """Raises OSError when the supervisor is gone."""
        self._socket.sendall(json.dumps({"event": event, "time": time.monotonic(), **content}).encode() + b"\n")

    def fileno(self) -> int:
        """The socket's descriptor, for `faulthandler`."""
        return self._socket.fileno()
