"""A stand-in for Docker Engine: its API on a Unix socket, with images that are made up and containers that are functions."""

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import SimpleQueue
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ID = "c" * 64
API = "1.45"

Write = Callable[[int, bytes], None]  # a part of stream 1 or 2
Program = Callable[["Engine", Write], int]


def _no_program(engine: "Engine", write: Write) -> int:
    return 0


@dataclass
class Engine:
    """What the engine has: `images` by name, and the `program` that every container runs; what was requested of it."""

    socket: Path
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    program: Program = _no_program
    created: list[dict[str, Any]] = field(default_factory=list)
    signals: SimpleQueue[str] = field(default_factory=SimpleQueue)
    tags: list[tuple[str, str, str]] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    load_error: str = ""
    removed: list[bool] = field(default_factory=list)  # whether by force
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    code: int = 0

    @property
    def host(self) -> str:
        """The engine as DOCKER_HOST."""
        return f"unix://{self.socket}"


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    engine: Engine


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return ""

    def do_GET(self) -> None:
        engine, path = self.server.engine, self._path()
        if path == "/version":
            self._answer({"ApiVersion": API, "MinAPIVersion": "1.24", "Version": "26"})
        elif path == "/events":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            assert engine.ended.wait(60)
            for action in ("die", "destroy"):
                self._chunk({"Action": action, "Actor": {"ID": ID, "Attributes": {"exitCode": str(engine.code)}}})
            self.wfile.write(b"0\r\n\r\n")
        elif path.endswith("/json") and (name := path[len("/images/") : -len("/json")]) in engine.images:
            self._answer(engine.images[name])
        elif path.endswith("/get"):
            self._send(200, path[len("/images/") : -len("/get")].encode())
        else:
            self._answer({"message": f"No such image: {path}"}, 404)

    def do_POST(self) -> None:
        engine, path = self.server.engine, self._path()
        body = self._body()
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if path == "/containers/create":
            engine.created.append(json.loads(body))
            engine.started.clear()
            engine.ended.clear()
            self._answer({"Id": ID, "Warnings": []}, 201)
        elif path.endswith("/attach"):
            self._attach()
        elif path.endswith("/start"):
            engine.started.set()
            self._send(204, b"")
        elif path.endswith("/kill"):
            engine.signals.put(query["signal"])
            self._send(204, b"")
        elif path.endswith("/tag"):
            engine.tags.append((path.split("/")[2], query["repo"], query["tag"]))
            self._send(201, b"")
        else:
            assert path == "/images/load"
            engine.loaded.append(body)
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._chunk({"stream": "Loaded image\n"})
            if engine.load_error:
                self._chunk({"errorDetail": {"message": engine.load_error}, "error": engine.load_error})
            self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_DELETE(self) -> None:
        engine = self.server.engine
        if engine.ended.is_set():
            self._answer({"message": "No such container"}, 404)
            return
        engine.removed.append("force=True" in self.path or "force=1" in self.path)
        engine.ended.set()
        self._send(204, b"")

    def _attach(self) -> None:
        engine = self.server.engine
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        if not engine.started.wait(60):
            return

        def write(stream: int, data: bytes) -> None:
            self.wfile.write(bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data)

        engine.code = engine.program(engine, write)
        self.wfile.flush()
        engine.ended.set()

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/v{API}")

    def _chunk(self, content: object) -> None:
        data = json.dumps(content).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self, content: object, code: int = 200) -> None:
        self._send(code, json.dumps(content).encode())

    def _send(self, code: int, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        if code != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def started() -> Iterator[Engine]:
    """Run the stand-in; its folder is short, because the path of a socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="smokehouse-api-", dir="/tmp"))
    engine = Engine(folder / "docker.sock")
    try:
        with _Server(str(engine.socket), _Handler) as server:
            server.engine = engine
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            yield engine
            engine.ended.set()
            server.shutdown()
            thread.join()
    finally:
        shutil.rmtree(folder)
