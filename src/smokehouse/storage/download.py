"""Download files whose hashes are known, from URLs or folders, several at a time and resumably."""

import hashlib
import io
import netrc
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from smokehouse import console
from smokehouse.console import Advance
from smokehouse.errors import UserError
from smokehouse.storage.files import hashed

_AT_ONCE = 8
_ATTEMPTS = 4  # in a row without progress
_PAUSE = 0.25  # seconds before the second attempt, then doubling
_PATIENCE = 60.0  # seconds without a byte
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
    """The connection ended early; the partial download is kept."""


class _AbortedError(Exception):
    """Another download failed, and with it the whole call; partial downloads are kept."""


def is_whole(path: Path, sha256: str) -> bool:
    """Return whether `path` is a file with the hash `sha256`."""
    return path.is_file() and hashed(path) == sha256


def fetch(
    downloads: Sequence[Download],
    *,
    remedy: str,
    credentials: Credentials | None = None,
    authorize: Authorize | None = None,
) -> None:
    """Download every file to its path and verify its hash, resuming from `.part` files.

    `authorize` is called before every request; without it, `credentials` and ~/.netrc apply. Raises UserError ending in
    `remedy` where a file is unavailable or has another hash.
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
        _run_all([partial(_fetch, file, remedy, known, progress) for file in downloads], failed)


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
                thread.join(_PATIENCE)
            raise raised


def _fetch(file: Download, remedy: str, credentials: Credentials | Authorize, progress: Advance) -> None:
    reported = 0

    def reached(position: int) -> None:
        nonlocal reported
        progress(position - reported)
        reported = position

    file.path.parent.mkdir(parents=True, exist_ok=True)
    part = file.path.with_name(f"{file.path.name}.part")
    failures = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            digest = _transfer(file, part, remedy, credentials, reached)
        except _LostError as lost:
            # Any progress counts: a slow server is not given up.
            failures = 0 if part.exists() and part.stat().st_size > had else failures + 1
            if failures >= _ATTEMPTS:
                raise UserError(f"{file.path.name}: {lost}; run it again to resume") from None
            time.sleep(_PAUSE * 2**failures)
            continue
        except OSError as broken:
            if broken.errno == ENOSPC:
                raise UserError(f"{part.parent}: the disk is full; free some space and run it again") from None
            raise
        if digest == file.sha256:
            part.replace(file.path)
            return
        part.unlink()
        if not had:  # a .part file of an earlier run can be of another file
            raise UserError(
                f"{file.path.name}: SHA-256 mismatch, {_host(file)} serves another file than {file.specified_by} specifies; "
                f"{remedy}"
            )


def _transfer(file: Download, part: Path, remedy: str, credentials: Credentials | Authorize, reached: Advance) -> str:
    """Append the missing bytes to `part`; return the SHA-256 of the file, empty where its length is wrong."""
    digest = hashlib.sha256()
    with part.open("a+b") as out:
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
        position = out.tell()
        reached(position)
        if file.size and position >= file.size:
            return digest.hexdigest()
        with _opened(file, position, remedy, credentials) as (source, begins, length):
            if begins != position:
                out.truncate(0)
                position, digest = 0, hashlib.sha256()
            whole = file.size or begins + length
            while chunk := _read(source):
                position += len(chunk)
                if whole and position > whole:
                    break  # the hash cannot match any more, and the response may be endless
                out.write(chunk)
                digest.update(chunk)
                reached(position)
    if position < whole:
        raise _LostError(f"connection to {_host(file)} lost at {position} of {whole} bytes")
    return digest.hexdigest() if position == whole or not whole else ""


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(_CHUNK)
    except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError):
        return b""


def _opened(
    file: Download, start: int, remedy: str, credentials: Credentials | Authorize
) -> AbstractContextManager[tuple[IO[bytes], int, int]]:
    """Open the source of `file`; yield it, the offset it begins at (`start`, or 0) and how many bytes it announces."""
    parts = urlsplit(file.source)
    if parts.scheme in ("http", "https"):
        return _opened_url(file, start, remedy, credentials)
    return _opened_path(Path(unquote(parts.path)) if parts.scheme == "file" else Path(file.source), start, remedy)


@contextmanager
def _opened_path(path: Path, start: int, remedy: str) -> Iterator[tuple[IO[bytes], int, int]]:
    try:
        source = path.open("rb")
    except OSError as broken:
        raise UserError(f"{path}: cannot be read ({broken.strerror}); {remedy}") from None
    with source:
        source.seek(start)
        yield source, start, 0


@contextmanager
def _opened_url(
    file: Download, start: int, remedy: str, credentials: Credentials | Authorize
) -> Iterator[tuple[IO[bytes], int, int]]:
    host = _host(file)
    url = urlsplit(file.source)._replace(netloc=host).geturl()
    request = urllib.request.Request(url, headers={"User-Agent": "smokehouse"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if authorization := _authorization(file, credentials):
        # Not sent to a host that this one redirects to.
        request.add_unredirected_header("Authorization", authorization)
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as refused:
        refused.close()
        if refused.code == 416:  # there is nothing after `start`
            yield io.BytesIO(), 0, 0
            return
        raise _refusal(file, refused, remedy) from None
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as broken:
        raise _unreachable(host, broken, remedy) from None
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise UserError(
                f"{file.path.name}: expected a file, {host} returned a web page, such as a proxy's login page; "
                f"sign in to the network, or {remedy}"
            )
        part = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
        length = int(response.headers["Content-Length"] or 0)
        yield response, int(part[1]) if response.status == 206 and part else 0, length


def _refusal(file: Download, refused: urllib.error.HTTPError, remedy: str) -> Exception:
    """Return what to raise for an HTTP error: `_LostError` where a second attempt can help."""
    text = f"{_host(file)} returned {refused.code} {refused.reason}"
    if refused.code in (408, 429) or refused.code >= 500:
        return _LostError(text)
    return UserError(f"{file.path.name}: {text}; {remedy}")


def _unreachable(host: str, broken: Exception, remedy: str) -> Exception:
    """Return what to raise where no response came: `_LostError` unless the certificate is not trusted."""
    reason = broken.reason if isinstance(broken, urllib.error.URLError) else broken
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(f"{host}: certificate not trusted ({reason.verify_message}); set SSL_CERT_FILE, or {remedy}")
    return _LostError(f"{host} cannot be reached ({str(reason) or type(reason).__name__}); check the network, or {remedy}")


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
