"""A real registry on this machine, and a proxy in front of it that does what networks do."""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from .debian import unpack

Value = TypeVar("Value")
PACKAGES = ("docker-registry/bookworm",)
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {store}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
"""


@contextmanager
def started(programs: Path, store: Path, place: Path) -> Iterator[int]:
    """Debian's docker-registry on 127.0.0.1, which keeps what it is given in `store`; yields its port."""
    usr = unpack(PACKAGES, programs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yml").write_text(_CONFIG.format(store=store, port=port))
    with (place / "log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", usr / "bin" / "docker-registry", "serve", place / "config.yml"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        # curl retries until there is an answer, so nothing here guesses how long that takes.
        ask = ["curl", "--silent", "--fail", "--retry", "100", "--retry-delay", "1", "--retry-all-errors", "--max-time", "60"]
        answered = subprocess.run([*ask, f"http://127.0.0.1:{port}/v2/"], capture_output=True, timeout=120)
        assert answered.returncode == 0, (place / "log").read_text()
        yield port
    finally:
        process.kill()
        process.wait(30)


@dataclass
class Faults:
    """What goes wrong, each once unless it says otherwise; the keys are found in "METHOD path" of a request.

    `cut_up` ends the connection after so many bytes of the request's body, `cut_down` after so many of the answer's;
    `lies` answers other bytes of the same length, always; `answers` gives a status of its own; `headers` adds some.
    """

    cut_up: dict[str, int] = field(default_factory=dict)
    cut_down: dict[str, int] = field(default_factory=dict)
    lies: set[str] = field(default_factory=set)
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)


class Proxy:
    """Passes requests on to the registry at `port`; `asked` has each as method and path, with its headers."""

    def __init__(self, port: int) -> None:
        self.faults = Faults()
        self.asked: list[tuple[str, dict[str, str]]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                proxy._pass(self, port)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"

    def requests(self, pattern: str) -> list[str]:
        """Every request that `pattern` is found in."""
        return [line for line, _ in self.asked if re.search(pattern, line)]

    def _pass(self, request: BaseHTTPRequestHandler, port: int) -> None:
        line = f"{request.command} {request.path}"
        self.asked.append((line, dict(request.headers)))
        request.close_connection = True
        if (status := _taken(self.faults.answers, line)) is not None:
            request.rfile.read(int(request.headers["Content-Length"] or 0))
            request.send_response(status[0])
            for name, text in {"Content-Length": "0", **status[1]}.items():
                request.send_header(name, text)
            request.end_headers()
            return
        length = int(request.headers["Content-Length"] or 0)
        upstream = HTTPConnection("127.0.0.1", port, timeout=60)
        upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, text in request.headers.items():
            if name.lower() not in ("connection", "host"):
                upstream.putheader(name, text)
        upstream.putheader("Host", self.host)
        upstream.endheaders()
        cut = _taken(self.faults.cut_up, line)
        wanted = length if cut is None else min(cut, length)
        while wanted > 0 and (chunk := request.rfile.read(min(wanted, 65536))):
            upstream.send(chunk)
            wanted -= len(chunk)
        if cut is not None:
            upstream.close()
            _hang_up(request)
            return
        with upstream.getresponse() as answer:
            body = answer.read()
            request.send_response(answer.status, answer.reason)
            for name, text in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    request.send_header(name, text)
            request.end_headers()
        upstream.close()
        if any(key in line for key in self.faults.lies):
            body = bytes(byte ^ 1 for byte in body)
        cut = _taken(self.faults.cut_down, line)
        if request.command != "HEAD":
            with suppress(OSError):
                request.wfile.write(body[:cut])
                request.wfile.flush()
        if cut is not None:
            _hang_up(request)


def _taken(faults: dict[str, Value], line: str) -> Value | None:
    key = next((key for key in faults if re.search(key, line)), None)
    return None if key is None else faults.pop(key)


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    with suppress(OSError):
        request.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def in_front(port: int) -> Iterator[Proxy]:
    """A proxy before the registry at `port`."""
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.02,))
    thread.start()
    yield proxy
    proxy.server.shutdown()
    thread.join()
    proxy.server.server_close()
