"""Download files whose hashes are known, from URLs or folders, several at a time and resumably."""

import hashlib
import netrc
import os
import queue
import stat
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from errno import EISDIR, ELOOP, ENOSPC, ENXIO
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from smokehouse import clock, console
from smokehouse.console import Advance
from smokehouse.errors import UserError
from smokehouse.storage.files import open_regular
from smokehouse.storage.transfer import (
    DOWNLOAD,
    PASSING,
    Answer,
    Client,
    InvalidAnswerError,
    Limits,
    TransferError,
    UnreachableError,
    UntrustedError,
)

_AT_ONCE = 8
_JOIN = 60.0  # seconds for threads to notice that another one failed
_CHUNK = 1 << 20

# User and password by host, sent to that host only.
Credentials = dict[str, tuple[str, str]]
# Returns the Authorization header for the host of a file, sent to no other host; empty for none.
Authorize = Callable[[], str]


@dataclass(frozen=True)
class Download:
    """A file to download to `path` from `source`, a URL or a path. `size` is in bytes, 0 if unknown.

    `specified_by` tells a user where its hash comes from.
    """

    path: Path
    source: str
    sha256: str
    size: int
    specified_by: str = "the lock"


class _LostError(Exception):
    """An attempt failed and another one can help; the partial download is kept. `pause` is in seconds, if the server said."""

    def __init__(self, text: str, pause: float | None = None) -> None:
        super().__init__(text)
        self.pause = pause


class _AbortedError(Exception):
    """Another download failed, and with it the whole call; partial downloads are kept."""


def fetch(
    downloads: Sequence[Download],
    *,
    remedy: str,
    credentials: Credentials | None = None,
    authorize: Authorize | None = None,
    limits: Limits = DOWNLOAD,
) -> None:
    """Download every file to its path and verify its hash, resuming from `.part` files.

    `authorize` is called before every request; without it, `credentials` and ~/.netrc apply. Raises UserError ending in
    `remedy` where a file is unavailable or has another hash, or its server is beyond `limits`.
    """
    if not downloads:
        return
    failed = threading.Event()
    with console.progress("fetching", sum(file.size for file in downloads), "bytes") as advance:

        def progress(count: int) -> None:
            if failed.is_set():
                raise _AbortedError
            advance(count)

        known = authorize or credentials or {}
        with closing(Client(limits)) as client:
            _run_all([partial(_fetch, file, remedy, known, client, progress) for file in downloads], failed)


def credentials_of(urls: Sequence[str]) -> Credentials:
    """Return the users and passwords in `urls` by host."""
    parts = [urlsplit(url) for url in urls]
    return {
        part.netloc.rpartition("@")[2]: (unquote(part.username), unquote(part.password or ""))
        for part in parts
        if part.username
    }


def _run_all(tasks: Sequence[Callable[[], None]], failed: threading.Event) -> None:
    """Run `tasks` in a few threads; re-raises the first exception after setting `failed` and joining the threads.

    A second call would otherwise find them still writing.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                task()
            except BaseException as raised:  # noqa: BLE001 - re-raised in the calling thread
                ended.put(raised)
                return
            ended.put(None)

    # Daemons, so that Ctrl-C need not wait for a silent server; a .part file may end anywhere.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(tasks)))]
    for thread in threads:
        thread.start()
    for _ in tasks:
        if raised := ended.get():
            failed.set()
            while not waiting.empty():
                with suppress(queue.Empty):
                    waiting.get_nowait()
            for thread in threads:
                thread.join(_JOIN)
            raise raised


@dataclass(frozen=True)
class _Source:
    """Where a file comes from, and how; no attempt begins or goes on after `until`, a time of `clock.now`."""

    file: Download
    remedy: str
    credentials: Credentials | Authorize
    client: Client
    until: float


def _fetch(file: Download, remedy: str, credentials: Credentials | Authorize, client: Client, progress: Advance) -> None:
    reported = 0

    def reached(position: int) -> None:
        nonlocal reported
        progress(position - reported)
        reported = position

    try:
        _ = urlsplit(file.source).port
    except ValueError as invalid:
        raise UserError(f"{file.path.name}: expected a URL or path, found {file.source!r} ({invalid}); {remedy}") from None
    file.path.parent.mkdir(parents=True, exist_ok=True)
    part = file.path.with_name(f"{file.path.name}.part")
    source = _Source(file, remedy, credentials, client, clock.now() + client.limits.deadline)
    for _ in range(2):  # a .part file can be of another file, or of one that changed on the server
        had = part.is_file() and part.stat().st_size
        try:
            digest, attempts = _download(source, part, reached)
        except OSError as broken:
            if broken.errno == ENOSPC:
                raise UserError(f"{part.parent}: the disk is full; free some space and run it again") from None
            raise
        if digest == file.sha256:
            part.replace(file.path)
            return
        part.unlink()
        if not had and attempts == 1:
            break
    raise UserError(
        f"{file.path.name}: SHA-256 mismatch, {_host(file)} serves another file than {file.specified_by} specifies; {remedy}"
    )


def _download(source: _Source, part: Path, reached: Advance) -> tuple[str, int]:
    """Complete `part`; return its SHA-256, empty where its length is wrong, and the number of attempts."""
    limits = source.client.limits
    fruitless = 0
    for attempt in range(1, limits.most + 1):
        had = part.stat().st_size if part.is_file() else 0
        try:
            return _transfer(source, part, reached), attempt
        except _LostError as lost:
            # A slow server is not given up while it brings much; whoever brings a little each time is.
            fruitless += part.stat().st_size - had < limits.gain
            if fruitless == limits.attempts or clock.now() > source.until:
                raise UserError(f"{source.file.path.name}: {lost}; run it again to resume") from None
            time.sleep(limits.pause * 2**fruitless if lost.pause is None else lost.pause)
    raise UserError(
        f"{source.file.path.name}: connection to {_host(source.file)} lost {limits.most} times; run it again to resume"
    )


def _transfer(source: _Source, part: Path, reached: Advance) -> str:
    """Append the missing bytes to `part`; return the SHA-256 of the file, empty where its length is wrong."""
    file, largest, digest = source.file, source.client.limits.largest, hashlib.sha256()
    with _opened_part(part) as out:
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
        position = out.tell()
        reached(position)
        if file.size and position >= file.size:
            return digest.hexdigest()
        with _opened(source, position) as (chunks, begins, announced):
            if begins != position:
                out.truncate(0)
                position, digest = 0, hashlib.sha256()
            if file.size and announced not in (0, file.size):
                return ""  # another file, such as a compressed one, and no part of this
            whole, lost = file.size or announced, ""
            try:
                for chunk in chunks:
                    position += len(chunk)
                    if position > (whole or largest):
                        return ""  # the hash cannot match any more, and the response may be endless
                    out.write(chunk)
                    digest.update(chunk)
                    reached(position)
            except TransferError as broken:  # what came is kept
                lost = f" ({broken})"
    if position < whole or (lost and not whole):
        raise _LostError(f"connection to {_host(file)} lost at {position} of {whole or 'unknown'} bytes{lost}")
    return digest.hexdigest()


def _opened_part(part: Path) -> IO[bytes]:
    """Open a partial download to read it and append to it; raises UserError unless it is a file that nothing else uses."""
    kind = ""
    try:
        handle = os.open(part, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as broken:
        if broken.errno not in (ELOOP, EISDIR, ENXIO):
            raise
        kind = {ELOOP: "a symbolic link", EISDIR: "a folder"}.get(broken.errno, "a socket")
    else:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return os.fdopen(handle, "r+b")
        os.close(handle)
        kind = "a file with another name" if stat.S_ISREG(status.st_mode) else "a FIFO or device"
    raise UserError(f"{part}: expected a partial download or nothing, found {kind}; remove it")


def _opened(source: _Source, start: int) -> AbstractContextManager[tuple[Iterator[bytes], int, int]]:
    """Open the source; yield its chunks, the offset that they begin at (`start`, or 0) and the announced size, 0 if unknown."""
    parts = urlsplit(source.file.source)
    if parts.scheme in ("http", "https"):
        return _opened_url(source, start)
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(source.file.source)
    return _opened_path(path, start, source.remedy)


@contextmanager
def _opened_path(path: Path, start: int, remedy: str) -> Iterator[tuple[Iterator[bytes], int, int]]:
    try:
        file = open_regular(path)
    except (OSError, ValueError) as broken:
        raise UserError(f"{path}: cannot be read ({getattr(broken, 'strerror', None) or broken}); {remedy}") from None
    with file:
        file.seek(start)
        yield iter(partial(file.read, _CHUNK), b""), start, 0


@contextmanager
def _opened_url(source: _Source, start: int) -> Iterator[tuple[Iterator[bytes], int, int]]:
    file, host, largest = source.file, _host(source.file), source.client.limits.largest
    url = urlsplit(file.source)._replace(netloc=host).geturl()
    headers = {"Range": f"bytes={start}-"} if start else {}
    if authorization := _authorization(file, source.credentials):
        headers["Authorization"] = authorization
    try:
        with source.client.open("GET", url, headers=headers, until=source.until) as answer:
            _require_file(source, answer, start)
            extent = _extent(answer, start)
            if extent is None:  # the next attempt requests the whole file
                yield iter(()), 0, 0
                return
            begins, announced = extent
            if announced > largest and not file.size:
                raise UserError(
                    f"{file.path.name}: expected at most {largest} bytes, {host} announces {announced}; {source.remedy}"
                )
            yield answer.chunks(), begins, announced
    except UntrustedError as broken:
        raise UserError(
            f"{host}: certificate not trusted ({broken}); set SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or {source.remedy}"
        ) from None
    except UnreachableError as broken:
        raise _LostError(f"{host} cannot be reached ({broken}); check the network, or {source.remedy}") from None
    except InvalidAnswerError as broken:
        raise UserError(f"{file.path.name}: invalid answer from {host}: {broken}; {source.remedy}") from None
    except TransferError as broken:
        raise _LostError(f"connection to {host} lost ({broken})") from None


def _extent(answer: Answer, start: int) -> tuple[int, int] | None:
    """Return the offset of the first byte that comes, 0 or `start`, and the size of the whole file, 0 if unknown.

    Returns None where the rest of a partial download cannot be had; raises InvalidAnswerError.
    """
    if answer.status == 416:  # there is nothing after `start`
        return None
    try:
        length = answer.length
        if answer.status != 206:
            return 0, length or 0
        begins, whole = answer.offset
        if begins != start:
            raise InvalidAnswerError(f"Content-Range: expected bytes from {start}, found from {begins}")
    except InvalidAnswerError:
        if start:
            return None
        raise
    return start, whole if whole is not None else start + length if length is not None else 0


def _require_file(source: _Source, answer: Answer, start: int) -> None:
    """Raise UserError where an answer has no file, _LostError where a second attempt can help."""
    host, limits = _host(source.file), source.client.limits
    if answer.status in (200, 206) or (answer.status == 416 and start):
        if answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
            raise UserError(
                f"{source.file.path.name}: expected a file, {host} returned a web page, such as a proxy's login page; "
                f"sign in to the network, or {source.remedy}"
            )
        return
    text = f"{host} returned {answer.status} {answer.reason}"
    if answer.status in PASSING or answer.status >= 500:
        if answer.asks_too_much(limits.retry_after):
            raise UserError(
                f"{source.file.path.name}: {text} and asks to wait for more than {limits.retry_after:g} s; try later"
            )
        raise _LostError(text, answer.wait(limits.retry_after))
    raise UserError(f"{source.file.path.name}: {text}; {source.remedy}")


def _authorization(file: Download, credentials: Credentials | Authorize) -> str:
    if not isinstance(credentials, dict):
        return credentials()
    parts = urlsplit(file.source)
    known = credentials_of([file.source]) | credentials
    secret = known.get(parts.netloc.rpartition("@")[2]) or _netrc(parts.hostname or "")
    return f"Basic {b64encode(':'.join(secret).encode()).decode()}" if secret else ""


def _netrc(host: str) -> tuple[str, str] | None:
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return (found[0], found[2] or "") if found else None


def _host(file: Download) -> str:
    parts = urlsplit(file.source)
    return parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else str(Path(file.source).parent)
