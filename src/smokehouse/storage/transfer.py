"""HTTP: one client for downloads and registries, which no server can hold up, fill or crash.

A socket's own timeout begins again with every byte, so a watch ends what is slow as a whole. Which certificates and proxies
apply: docs/how-to/offline.md.
"""

import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidHeader, NewConnectionError, ProxyError

from smokehouse import clock
from smokehouse.console import size
from smokehouse.errors import UserError

_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_REDIRECTS = 10
_CHUNK = 1 << 20
_DIGITS = 15  # of a size in bytes; Python refuses to read numbers of thousands
_CONNECTIONS = 16
_LATER = 5.0  # seconds that the timeout of a socket without a watch has beyond the limits
PASSING = (408, 429, 500, 502, 503, 504)  # statuses after which another attempt can help


@dataclass(frozen=True)
class Limits:
    """How long a server may take, in seconds, and how often it is asked again.

    A response must bring its headers within `answer`, then `rate` bytes a second in each `window`; everything ends after
    `deadline`. A file gets `attempts` that gain less than `gain` bytes, and `most` altogether; the pause before the second
    is `pause`, then doubles, or what the server asks for, up to `retry_after`. A file of unknown size has `largest` bytes
    at most.
    """

    connect: float = 30.0
    answer: float = 60.0
    window: float = 60.0
    rate: float = 1000.0
    deadline: float = 4 * 3600.0
    attempts: int = 4
    gain: int = 32 << 20
    most: int = 100
    pause: float = 0.25
    retry_after: float = 120.0
    largest: int = 8 << 30


DOWNLOAD = Limits()
REGISTRY = Limits(answer=300.0)  # it hashes a large layer before it answers


class TransferError(Exception):
    """A transfer failed, for a reason without the names of files: the connection was lost, or was too slow."""


class UnreachableError(TransferError):
    """There is no connection to the server."""


class UntrustedError(TransferError):
    """The certificate of the server is not trusted."""


class InvalidAnswerError(TransferError):
    """What the server sent is not HTTP, or contradicts itself."""


class Answer:
    """The status and headers of a response, and its body, which is read once."""

    def __init__(self, response: requests.Response, watch: "_Watch") -> None:
        """Take over a `response` whose body is unread, watched by `watch`."""
        self.status, self.reason = response.status_code, _printable(response.reason or "")
        self.url = str(response.url)
        self.headers: Mapping[str, str] = response.headers
        self._raw, self._watch = response.raw, watch

    @property
    def length(self) -> int | None:
        """Content-Length in bytes, None without one; raises InvalidAnswerError."""
        return _number(self.headers, "Content-Length")

    @property
    def offset(self) -> tuple[int, int | None]:
        """The first byte of Content-Range and the size of the file, None if unknown; raises InvalidAnswerError.

        See: RFC 9110, 14.4.
        """
        text = self.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)", text, re.ASCII)
        if not found or int(found[1]) > int(found[2]) or (found[3] != "*" and int(found[2]) >= int(found[3])):
            raise InvalidAnswerError(f"Content-Range: expected bytes FIRST-LAST/SIZE, found {_shortened(text)}")
        return int(found[1]), None if found[3] == "*" else int(found[3])

    def wait(self, most: float) -> float | None:
        """Return the seconds that Retry-After asks to wait; None without a valid one, or where it is more than `most`."""
        seconds = retry_after(self.headers.get("Retry-After", ""))
        return seconds if seconds is not None and seconds <= most else None

    def asks_too_much(self, most: float) -> bool:
        """Return whether Retry-After asks to wait for more than `most` seconds."""
        seconds = retry_after(self.headers.get("Retry-After", ""))
        return seconds is not None and seconds > most

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes, not decoded; raises TransferError where the connection is lost."""
        while True:
            with _translated(self._watch):
                data = self._raw.read1(_CHUNK, decode_content=False)
            if not data:
                self._watch.require()
                return
            self._watch.moved(len(data))
            yield data

    def read(self, most: int) -> bytes:
        """Return the body, or its first `most` + 1 bytes where it is longer; raises TransferError."""
        if (encoding := self.headers.get("Content-Encoding", "identity")) != "identity":
            raise InvalidAnswerError(f"Content-Encoding: expected none, found {_shortened(encoding)}")
        body = bytearray()
        for data in self.chunks():
            body += data
            if len(body) > most:
                break
        return bytes(body[: most + 1])


class Client:
    """A client whose transfers have limits; threads may share it.

    It sends the Authorization of each request, only to the host of that request, and no cookies.
    """

    def __init__(self, limits: Limits = DOWNLOAD) -> None:
        """Read the certificates that the environment specifies; raises UserError."""
        self.limits = limits
        self._adapter = _Adapter(_context())

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | IO[bytes] | None = None,
        until: float | None = None,
        redirect: bool = True,
    ) -> Iterator[Answer]:
        """Send one request, follow redirects, and yield the answer, whatever its status; raises TransferError.

        It ends at the latest at `until`, a time of `clock.now`.
        """
        with _Watch(self.limits, until) as watch, closing(self._send(method, url, headers or {}, data, watch, redirect)) as got:
            yield Answer(got, watch)

    @contextmanager
    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        until: float | None = None,
        redirect: bool = True,
    ) -> Iterator[Answer]:
        """Like `open` for a request that changes nothing, and send it again, a few times, where that can help."""
        limits = self.limits
        until = clock.now() + limits.deadline if until is None else until
        with ExitStack() as stack:
            for attempt in range(limits.attempts):
                last, pause = attempt == limits.attempts - 1, limits.pause * 2**attempt
                try:
                    opened = self.open(method, url, headers=headers, data=data, until=until, redirect=redirect)
                    answer = stack.enter_context(opened)
                except TransferError as failed:
                    if last or isinstance(failed, (UntrustedError, InvalidAnswerError)):
                        raise
                else:
                    if last or answer.status not in PASSING or answer.asks_too_much(limits.retry_after):
                        break
                    pause = answer.wait(limits.retry_after) or pause
                    stack.close()
                time.sleep(max(0.0, min(pause, until - clock.now())))
            yield answer

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | IO[bytes] | None,
        watch: "_Watch",
        redirect: bool,
    ) -> requests.Response:
        sent = {"User-Agent": "smokehouse", "Accept-Encoding": "identity", **headers}
        for _ in range(_REDIRECTS + 1):
            with _translated(watch):
                body = data if data is None or isinstance(data, bytes) else _Counted(data, watch)
                request = requests.Request(method, url, headers=sent, data=body).prepare()
                watch.waiting()
                response = self._adapter.send(
                    request,
                    stream=True,
                    timeout=(self.limits.connect, _LATER + max(self.limits.answer, self.limits.window)),
                    proxies=_proxies(url),
                )
                target = _target(response, method) if redirect else None
            if target is None:
                return response
            response.close()
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                sent.pop("Authorization", None)
            url = target
        raise InvalidAnswerError(f"expected at most {_REDIRECTS} redirects, found more")


def is_loopback(host: str) -> bool:
    """Return whether `host`, with or without a port, is this machine: no proxy is used for it."""
    name = re.sub(r":\d+$", "", host.rpartition("@")[2]).strip("[]")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def retry_after(text: str) -> float | None:
    """Return the seconds from now that the value of a header Retry-After means, None where it is invalid.

    See: RFC 9110, 10.2.3.
    """
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class _Watch:
    """Ends the connections of one transfer when it is too slow, by shutting their sockets down."""

    _own = threading.local()  # the watch of the request that a thread is sending

    def __init__(self, limits: Limits, until: float | None) -> None:
        self._limits = limits
        self._until = clock.now() + limits.deadline if until is None else until
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._sockets: list[socket.socket] = []
        self._moving, self._since, self._count = False, clock.now(), 0
        self._reason = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if clock.now() >= self._until:
            raise TransferError(f"timed out after {self._limits.deadline:g} s")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    @classmethod
    def current(cls) -> "_Watch | None":
        """Return the watch of the request that this thread is sending."""
        return getattr(cls._own, "watch", None)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Watch the connections that this thread opens or uses."""
        self._own.watch = self
        try:
            yield
        finally:
            self._own.watch = None

    def add(self, connected: socket.socket) -> None:
        """Watch another socket."""
        # A duplicate can be shut down while the other one is being wrapped in TLS, or belongs to a response.
        double = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._sockets.append(double)
            if self._reason:
                _shut(double)

    def waiting(self) -> None:
        """Begin to wait for an answer."""
        with self._lock:
            self._moving, self._since = False, clock.now()

    def moved(self, count: int) -> None:
        """Count bytes that were sent or received."""
        with self._lock:
            if not self._moving:
                self._moving, self._since, self._count = True, clock.now(), 0
            self._count += count

    def require(self) -> None:
        """Raise TransferError where this watch ended the transfer."""
        if self._reason:
            raise TransferError(self._reason)

    def _run(self) -> None:
        limits = self._limits
        tick = min(max(min(limits.answer, limits.window, limits.deadline) / 8, 0.005), 1.0)
        while not self._ended.wait(tick):
            with self._lock:
                self._reason = self._overdue(clock.now())
                if self._reason:
                    for sock in self._sockets:
                        _shut(sock)
                    return

    def _overdue(self, now: float) -> str:
        limits = self._limits
        if now > self._until:
            return f"timed out after {limits.deadline:g} s"
        if not self._moving:
            return f"no answer within {limits.answer:g} s" if now - self._since > limits.answer else ""
        if now - self._since >= limits.window:
            if self._count < limits.rate * limits.window:
                return f"slower than {size(limits.rate)} a second for {limits.window:g} s"
            self._since, self._count = now, 0
        return ""


class _Counted:
    """A file that is sent from its beginning, of which a watch counts what was read; requests takes its length from here."""

    def __init__(self, file: IO[bytes], watch: _Watch) -> None:
        self._file, self._watch = file, watch
        file.seek(0)
        self._size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.read, _CHUNK), b"")

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        if data:
            self._watch.moved(len(data))
        else:
            self._watch.waiting()
        return data


class _HTTP(HTTPConnection):
    """A connection whose socket is watched."""

    def _new_conn(self) -> socket.socket:
        return _watched(super()._new_conn())

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request, on a new connection or on one that was kept."""
        if self.sock:
            _watched(self.sock)
        else:
            self.connect()
        self._end_timeout()
        super().request(*arguments, **options)

    def getresponse(self) -> Any:
        """Receive the answer."""
        self._end_timeout()
        return super().getresponse()

    def _end_timeout(self) -> None:
        """Leave it to the watch to end what is slow: the clock of a socket goes on while this process is stopped."""
        self.timeout = None
        self.sock.settimeout(None)


class _HTTPS(_HTTP, HTTPSConnection):
    """An encrypted connection whose socket is watched."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPS


class _Adapter(HTTPAdapter):
    """An adapter with watched connections and one set of certificates."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        contexts = {"ssl_context": self._context, "proxy_ssl_context": self._context}
        manager = super().proxy_manager_for(proxy, **options, **contexts)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # with the certificates of the context, and no others


def _watched(connected: socket.socket) -> socket.socket:
    if watch := _Watch.current():
        watch.add(connected)
    return connected


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _context() -> ssl.SSLContext:
    """Return the certificates to trust: those of the environment, or else of the system and of certifi."""
    places = [(name, os.environ[name]) for name in _CERTIFICATES if os.environ.get(name)]
    if not places:
        context = ssl.create_default_context()
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, place in places:
        try:
            context.load_verify_locations(**{"capath" if Path(place).is_dir() else "cafile": place})
        except OSError as broken:  # an ssl.SSLError is one
            raise UserError(
                f"{name}: expected a file or folder of certificates, found {place} ({broken.strerror or broken}); "
                "fix it, or unset it to trust those of the system"
            ) from None
    return context


def _proxies(url: str) -> dict[str, str]:
    return {} if is_loopback(urlsplit(url).netloc) else get_environ_proxies(url)


def _target(response: requests.Response, method: str) -> str | None:
    """Return the URL that a response redirects to, None where it does not."""
    followed = (301, 302, 303, 307, 308) if method in ("GET", "HEAD") else (307, 308)
    location = response.headers.get("Location")
    if response.status_code not in followed or not location:
        return None
    target = urljoin(str(response.url), location.encode("latin-1").decode("utf-8"))
    if urlsplit(target).scheme not in ("http", "https"):
        raise InvalidAnswerError(f"Location: expected an http or https URL, found {_shortened(target)}")
    return target


@contextmanager
def _translated(watch: _Watch) -> Iterator[None]:
    """Raise TransferError for whatever requests, urllib3, http.client and ssl raise about a server."""
    try:
        with watch.sending():
            yield
    except (requests.RequestException, HTTPError, OSError, ValueError, EOFError) as broken:
        watch.require()
        raise _error(broken) from None
    watch.require()


def _error(broken: Exception) -> TransferError:
    causes = [*_causes(broken)]
    untrusted = [cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)]
    if untrusted:
        return UntrustedError(untrusted[0].verify_message or str(untrusted[0]))
    text = _described(causes[-1])
    if any(isinstance(cause, (NewConnectionError, ConnectTimeoutError, ProxyError)) for cause in causes):
        return UnreachableError(text)
    if any(isinstance(cause, InvalidHeader) or (isinstance(cause, ValueError) and cause is broken) for cause in causes):
        return InvalidAnswerError(text)
    return TransferError(text)


def _causes(broken: Any) -> Iterator[Any]:
    """Yield an exception and what it was raised for, as requests and urllib3 nest them."""
    for _ in range(10):
        yield broken
        nested = [part for part in (getattr(broken, "reason", None), *reversed(broken.args)) if isinstance(part, Exception)]
        if not nested:
            return
        broken = nested[0]


def _described(cause: Exception) -> str:
    """Return the text of an exception without the addresses of its objects, in one line."""
    text = str(getattr(cause, "reason", None) or cause) or type(cause).__name__
    return _printable(re.sub(r"<[^>]*>[:,]? ?|_?HTTPS?(Connection)?(Pool)?\([^)]*\): ", "", text))[:200]


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not re.fullmatch(rf"[0-9]{{1,{_DIGITS}}}", text, re.ASCII):
        raise InvalidAnswerError(f"{name}: expected a number of bytes, found {_shortened(text)}")
    return int(text)


def _shortened(text: str) -> str:
    return repr(_printable(text)[:60]) + ("" if len(text) <= 60 else f" and {len(text) - 60} more characters")


def _printable(text: object) -> str:
    return "".join(character if character.isprintable() else "?" for character in " ".join(str(text).split()))
