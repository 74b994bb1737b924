"""A real registry on this machine, a token server for it, and a proxy in front of it that fails as networks do."""

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
from typing import Self, TypeVar
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
_LEEWAY = 60  # seconds that docker-registry accepts a token after it expired


@contextmanager
def started(programs: Path, store: Path, place: Path, auth: object = None) -> Iterator[int]:
    """Run Debian's docker-registry on 127.0.0.1 with its storage in `store`; yields its port.

    `auth` is the section of its configuration; without it, everybody may do everything.
    """
    usr = unpack(PACKAGES, programs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yml").write_text(_CONFIG.format(store=store, port=port, auth=json.dumps(auth or {})))
    with (place / "log").open("wb") as log:
        program = [str(usr / "bin" / "docker-registry"), "serve", str(place / "config.yml")]
        command = ["setpriv", "--pdeathsig", "KILL", *program]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        # curl retries until there is a response, so nothing here guesses how long that takes.
        curl = ["curl", "--silent", "--fail", "--retry", "100", "--retry-delay", "1", "--retry-all-errors", "--max-time", "60"]
        answered = subprocess.run([*curl, f"http://127.0.0.1:{port}/"], capture_output=True, timeout=120)
        assert answered.returncode == 0, (place / "log").read_text()
        yield port
    finally:
        process.kill()
        process.wait(30)


@dataclass
class Faults:
    """Faults to inject, each once except `lies`; the keys are searched for in "METHOD path" of a request.

    `cut_up` closes the connection after that many bytes of the request's body, `cut_down` of the response's. `lies` returns
    other bytes of the same length; `answers` returns a status and headers of its own.
    """

    cut_up: dict[str, int] = field(default_factory=dict)
    cut_down: dict[str, int] = field(default_factory=dict)
    lies: set[str] = field(default_factory=set)
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)


class Proxy:
    """A proxy for the registry at `port`; `received` has method and path of each request, with its headers."""

    def __init__(self, port: int) -> None:
        self.faults = Faults()
        self.received: list[tuple[str, dict[str, str]]] = []
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
        """Return every request that matches `pattern`."""
        return [line for line, _ in self.received if re.search(pattern, line)]

    def _pass(self, request: BaseHTTPRequestHandler, port: int) -> None:
        line = f"{request.command} {request.path}"
        self.received.append((line, dict(request.headers)))
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
    """Run a proxy for the registry at `port`."""
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.02,))
    thread.start()
    yield proxy
    proxy.server.shutdown()
    thread.join()
    proxy.server.server_close()


def push_image(host: str, folder: Path, name: str) -> tuple[Reference, Descriptor]:
    """Push an image of two layers; return its reference and manifest."""
    layout = Layout(folder)
    made = image(folder, [{"big": BIG}, {"small": b"1"}], kind="")
    reference = Reference.parse(f"{host}/{name}:tag")
    registry = Registry(reference, push=True)
    for blob in layout.image().blobs:
        registry.upload(layout.blob(blob.digest), blob)
    registry.put(layout.read(made), made.media_type, "tag")
    return reference, made


@dataclass(frozen=True)
class Request:
    """A request that a server received; `fields` are those of its query and of a form in its body."""

    method: str
    path: str
    headers: dict[str, str]
    fields: dict[str, str]


Response = tuple[int, dict[str, str], bytes]


class Server:
    """A server with the responses of a function, which records the requests; with `pair`, certificate and key, it uses TLS."""

    def __init__(self, respond: Callable[[Request], Response], address: str = "127.0.0.1", pair: Path | None = None) -> None:
        self.received: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _respond(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                where = urlsplit(self.path)
                form = body.decode() if self.headers.get_content_type() == "application/x-www-form-urlencoded" else ""
                received = Request(self.command, where.path, dict(self.headers), dict(parse_qsl(f"{where.query}&{form}")))
                server.received.append(received)
                status, headers, content = respond(received)
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content if self.command != "HEAD" else b"")

            do_GET = do_HEAD = do_POST = do_PUT = _respond

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"{address}:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def certificate(folder: Path, address: str) -> Path:
    """Write a new key and its self-signed certificate for `address` to a file, and return it."""
    pair = folder / "pair.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    command += ["-addext", f"subjectAltName=IP:{address}", "-keyout", str(pair), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with pair.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return pair


class Tokens(Server):
    """A token server whose tokens docker-registry accepts, for `users` with their passwords.

    Anonymous clients get a token for pulling. A token is valid for `valid` seconds, and announced for `announced`; `expires`
    is the time at which the last one expires. `identities` are users by identity token.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(self._issue)
        self.users: dict[str, str] = {}
        self.identities: dict[str, str] = {}
        self.valid, self.announced, self.expires = 300.0, 300.0, 0.0
        self._pair = certificate(folder, "127.0.0.1")
        self.auth = {
            "token": {
                "realm": f"http://{self.host}/token",
                "service": "tests",
                "issuer": "tests",
                "rootcertbundle": str(folder / "certificate.pem"),
            }
        }

    def _issue(self, request: Request) -> Response:
        user, rights = "", ["pull"]
        if identity := request.fields.get("refresh_token"):
            user = self.identities.get(identity, "")
        elif basic := request.headers.get("Authorization"):
            name, _, password = b64decode(basic.removeprefix("Basic ")).decode().partition(":")
            user = name if self.users.get(name) == password else ""
        if user:
            rights = ["pull", "push"]
        elif identity or basic:
            return 401, {}, b'{"errors": [{"message": "wrong user or password"}]}'
        kind, name, wanted = request.fields["scope"].split(":")
        self.expires = time.time() + self.valid
        claims = {
            "iss": "tests",
            "sub": user,
            "aud": request.fields["service"],
            "exp": int(self.expires) - _LEEWAY,
            "nbf": 0,
            "iat": 0,
            "jti": str(len(self.received)),
            "access": [{"type": kind, "name": name, "actions": [right for right in wanted.split(",") if right in rights]}],
        }
        chain = "".join(self._pair.with_name("certificate.pem").read_text().splitlines()[1:-1])
        head = {"typ": "JWT", "alg": "RS256", "x5c": [chain]}
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._pair)]
        signature = subprocess.run(command, input=text, check=True, capture_output=True, timeout=60).stdout
        token = (text + b"." + _base64url(signature)).decode()
        return 200, {}, json.dumps({"token": token, "expires_in": self.announced}).encode()


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
