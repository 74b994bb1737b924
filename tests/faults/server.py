"""A server that answers as no good one does: each connection gets raw bytes from a function."""

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from requests.structures import CaseInsensitiveDict


@dataclass
class Exchange:
    """One request, and the connection that it came on."""

    number: int  # of the request, from 0
    line: str
    headers: CaseInsensitiveDict[str]
    body: bytes
    connection: socket.socket = field(repr=False)
    stopped: threading.Event = field(repr=False)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.connection.sendall(data)

    def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        """Send an ordinary answer, with `headers` in place of Content-Length where there are any.

        A client that used the connection again before it is closed would get no answer.
        """
        lines = (*(headers or (f"Content-Length: {len(body)}",)), "Connection: close")
        self.send(
            f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body
        )

    def repeat(self, data: bytes, pause: float = 0.0) -> None:
        """Send `data` again and again, until the client has enough."""
        while not self.stopped.wait(pause):
            self.send(data)

    def hold(self) -> None:
        """Send nothing more, until the client closes the connection."""
        self.connection.settimeout(60)
        while self.connection.recv(65536):
            pass

    @property
    def start(self) -> int:
        """The first byte that is requested."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


Script = Callable[[Exchange], None]


class Hostile:
    """A server on 127.0.0.1 that runs a script for every request, one to a connection.

    With `pair`, a file of its certificate and key, it uses TLS.
    """

    def __init__(self, script: Script, pair: Path | None = None) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if pair else None
        if self._context and pair:
            self._context.load_cert_chain(pair)
        self.requests: list[Exchange] = []
        self._script, self._stopped = script, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))
            connection.settimeout(60)
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            stack.enter_context(connection)
            received = b""
            while b"\r\n\r\n" not in received:
                if not (more := connection.recv(65536)):
                    return
                received += more
            head, _, body = received.partition(b"\r\n\r\n")
            line, *rest = head.decode("latin-1").split("\r\n")
            headers = CaseInsensitiveDict[str](dict(text.split(": ", 1) for text in rest))
            while len(body) < int(headers.get("Content-Length", "0")) and (more := connection.recv(65536)):
                body += more
            with self._lock:
                exchange = Exchange(len(self.requests), line, headers, body, connection, self._stopped)
                self.requests.append(exchange)
            self._script(exchange)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # closing with unread bytes would reset the connection, and lose the answer
                pass
        with self._lock:
            self._open.discard(connection)
