"""A real registry on this machine, who gives tokens for it, and a proxy before it that does what networks do."""

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from smokehouse.oci import Descriptor, Layout, Reference, Registry

from .debian import unpack
from .tiny_images import image

BIG = bytes(range(256)) * 4096
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
auth: {auth}
"""
_LEEWAY = 60  # seconds that docker-registry takes a token for after its end


@contextmanager
def started(programs: Path, store: Path, place: Path, auth: object = None) -> Iterator[int]:
    """Debian's docker-registry on 127.0.0.1, which keeps what it is given in `store`; yields its port.

    `auth` is that part of its configuration; without it, anyone may do anything.
    """
    usr = unpack(PACKAGES, programs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yml").write_text(_CONFIG.format(store=store, port=port, auth=json.dumps(auth or {})))
    with (place / "log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", usr / "bin" / "docker-registry", "serve", place / "config.yml"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        # curl retries until there is an answer, so nothing here guesses how long that takes.
        ask = ["curl", "--silent", "--fail", "--retry", "100", "--retry-delay", "1", "--retry-all-errors", "--max-time", "60"]
        answered = subprocess.run([*ask, f"http://127.0.0.1:{port}/"], capture_output=True, timeout=120)
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


def pushed(host: str, folder: Path, name: str) -> tuple[Reference, Descriptor]:
    """An image of two layers in the registry."""
    layout = Layout(folder)
    made = image(folder, [{"big": BIG}, {"small": b"1"}], kind="")
    reference = Reference.parse(f"{host}/{name}:tag")
    there = Registry(reference, push=True)
    for blob in layout.image().blobs:
        there.upload(layout.blob(blob.digest), blob)
    there.put(layout.read(made), made.media_type, "tag")
    return reference, made


@dataclass(frozen=True)
class Asked:
    """A request that a server got: its method, path, headers, and what its query and its body as a form say."""

    method: str
    path: str
    headers: dict[str, str]
    said: dict[str, str]


Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A server that answers what it is told to and keeps what it was asked; with `pair`, a certificate and key, by TLS."""

    def __init__(self, answer: Callable[[Asked], Answer], address: str = "127.0.0.1", pair: Path | None = None) -> None:
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                where = urlsplit(self.path)
                form = body.decode() if self.headers.get_content_type() == "application/x-www-form-urlencoded" else ""
                asked = Asked(self.command, where.path, dict(self.headers), dict(parse_qsl(f"{where.query}&{form}")))
                server.asked.append(asked)
                status, headers, content = answer(asked)
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content if self.command != "HEAD" else b"")

            do_GET = do_HEAD = do_POST = do_PUT = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"{address}:{self._server.server_port}"

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def certificate(folder: Path, address: str) -> Path:
    """A file with a new key and a certificate of `address` that it signed itself."""
    pair = folder / "pair.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    command += ["-addext", f"subjectAltName=IP:{address}", "-keyout", pair, "-out", folder / "certificate.pem"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with pair.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return pair


class Tokens(Server):
    """Gives `users`, with their passwords, tokens that docker-registry believes, as its documents say of a token server.

    Whoever is not there gets a token for pulling. A token is `good` for so many seconds, and said to be for `stated`;
    `until` is when the last one ends. `identities` are users by their identity tokens.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(self._give)
        self.users: dict[str, str] = {}
        self.identities: dict[str, str] = {}
        self.good, self.stated, self.until = 300.0, 300.0, 0.0
        self._pair = certificate(folder, "127.0.0.1")
        self.auth = {
            "token": {
                "realm": f"http://{self.host}/token",
                "service": "tests",
                "issuer": "tests",
                "rootcertbundle": str(folder / "certificate.pem"),
            }
        }

    def _give(self, asked: Asked) -> Answer:
        user, rights = "", ["pull"]
        if identity := asked.said.get("refresh_token"):
            user = self.identities.get(identity, "")
        elif basic := asked.headers.get("Authorization"):
            name, _, password = b64decode(basic.removeprefix("Basic ")).decode().partition(":")
            user = name if self.users.get(name) == password else ""
        if user:
            rights = ["pull", "push"]
        elif identity or basic:
            return 401, {}, b'{"errors": [{"message": "wrong user or password"}]}'
        kind, name, wanted = asked.said["scope"].split(":")
        self.until = time.time() + self.good
        claims = {
            "iss": "tests",
            "sub": user,
            "aud": asked.said["service"],
            "exp": int(self.until) - _LEEWAY,
            "nbf": 0,
            "iat": 0,
            "jti": str(len(self.asked)),
            "access": [{"type": kind, "name": name, "actions": [right for right in wanted.split(",") if right in rights]}],
        }
        chain = "".join(self._pair.with_name("certificate.pem").read_text().splitlines()[1:-1])
        head = {"typ": "JWT", "alg": "RS256", "x5c": [chain]}
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", self._pair]
        signature = subprocess.run(command, input=text, check=True, capture_output=True, timeout=60).stdout
        token = (text + b"." + _base64url(signature)).decode()
        return 200, {}, json.dumps({"token": token, "expires_in": self.stated}).encode()


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
