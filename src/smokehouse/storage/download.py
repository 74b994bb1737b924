"""Downloads: files that are known by their hash, from a URL or a folder, several at a time."""

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from smokehouse import console
from smokehouse.console import Advance
from smokehouse.errors import UserError
from smokehouse.storage.files import hashed

_AT_ONCE = 8
_ATTEMPTS = 4  # in a row that bring nothing
_PAUSE = 0.25  # seconds before the second attempt, then doubled
_PATIENCE = 60.0  # seconds without a byte
_CHUNK = 1 << 20

# A host's user and password, to be sent to that host only.
Credentials = dict[str, tuple[str, str]]
# Returns what is sent as Authorization to the host that a file is asked of, and to no other; empty for nothing.
Authorize = Callable[[], str]


@dataclass(frozen=True)
class Download:
    """A file to fetch: to where, from where (`source` is a URL or a path) and what it must be. `size` 0 is unknown.

    `by` is what names its hash.
    """

    path: Path
    source: str
    sha256: str
    size: int
    by: str = "the lock"


class _Lost(Exception):
    """The connection ended early; what came is kept."""


class _Failed(Exception):
    """Another download failed, and with it the whole call; what came is kept."""


def is_whole(path: Path, sha256: str) -> bool:
    """Return whether the file with the hash `sha256` lies at `path`."""
    return path.is_file() and hashed(path) == sha256


def fetch(
    wanted: Sequence[Download],
    *,
    remedy: str,
    credentials: Credentials | None = None,
    authorize: Authorize | None = None,
) -> None:
    """Make every file of `wanted` lie at its path, seen to have its hash.

    `authorize` is asked before every request; without it, `credentials` and ~/.netrc are looked at.

    An interrupted download is continued from its `.part` file. Raises UserError ending in `remedy` where a file cannot be
    had or is another one.
    """
    if not wanted:
        return
    failed = threading.Event()
    with console.progress("fetching", sum(file.size for file in wanted), "bytes") as advance:

        def progress(count: int) -> None:
            if failed.is_set():
                raise _Failed
            advance(count)

        known = authorize or credentials or {}
        _all_at_once([lambda file=file: _fetch(file, remedy, known, progress) for file in wanted], failed)  # type: ignore[misc]


def credentials_of(urls: Sequence[str]) -> Credentials:
    """Return the user and password of every host in `urls` that names them."""
    parts = [urlsplit(url) for url in urls]
    return {
        part.netloc.rpartition("@")[2]: (unquote(part.username), unquote(part.password or ""))
        for part in parts
        if part.username
    }


def _all_at_once(tasks: Sequence[Callable[[], None]], failed: threading.Event) -> None:
    """Run `tasks` in a few threads; raises the first thing that one of them raises, when the others have seen `failed`.

    Until then they write, and a second call must not find them at it.
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
            except BaseException as raised:  # noqa: BLE001 - handed to the thread that waits
                ended.put(raised)
                return
            ended.put(None)

    # Daemons, so that Ctrl-C need not wait for a server that says nothing; a .part file may end anywhere.
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
    shown = 0

    def reached(position: int) -> None:
        nonlocal shown
        progress(position - shown)
        shown = position

    file.path.parent.mkdir(parents=True, exist_ok=True)
    part = file.path.with_name(f"{file.path.name}.part")
    failures = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            digest = _transfer(file, part, remedy, credentials, reached)
        except _Lost as lost:
            # A server that goes on from where it stopped is not given up.
            failures = 0 if part.exists() and part.stat().st_size > had else failures + 1
            if failures >= _ATTEMPTS:
                raise UserError(f"{file.path.name}: {lost}; run it again, it goes on where it stopped") from None
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
        if not had:  # what was left of an earlier run can have been of another file
            raise UserError(f"{file.path.name}: {_host(file)} serves another file than {file.by} names; {remedy}")


def _transfer(file: Download, part: Path, remedy: str, credentials: Credentials | Authorize, reached: Advance) -> str:
    """Append to `part` what it lacks; return the SHA-256 of the whole."""
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
                    break  # the hash will not be right, and there could be no end
                out.write(chunk)
                digest.update(chunk)
                reached(position)
    if position < whole:
        raise _Lost(f"the connection to {_host(file)} was lost at {position} of {whole} bytes")
    return digest.hexdigest() if position == whole or not whole else ""


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(_CHUNK)
    except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError):
        return b""


@contextmanager
def _opened(
    file: Download, start: int, remedy: str, credentials: Credentials | Authorize
) -> Iterator[tuple[IO[bytes], int, int]]:
    """Open the source of `file`; yield it, the offset it begins at (`start`, or 0) and how many bytes it says it has."""
    parts = urlsplit(file.source)
    if parts.scheme not in ("http", "https"):
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(file.source)
        try:
            source = path.open("rb")
        except OSError as broken:
            raise UserError(f"{path}: cannot be read ({broken.strerror}); {remedy}") from None
        with source:
            source.seek(start)
            yield source, start, 0
        return
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"User-Agent": "smokehouse"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if authorization := _authorization(file, credentials):
        # Not for whoever the host redirects to.
        request.add_unredirected_header("Authorization", authorization)
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as refused:
        refused.close()
        if refused.code == 416:
            yield io.BytesIO(), 0, 0
            return
        if refused.code in (408, 429) or refused.code >= 500:
            raise _Lost(f"{host} answers {refused.code} {refused.reason}") from None
        raise UserError(f"{file.path.name}: {host} answers {refused.code} {refused.reason}; {remedy}") from None
    except urllib.error.URLError as unreached:
        if isinstance(unreached.reason, ssl.SSLCertVerificationError):
            said = unreached.reason.verify_message
            raise UserError(f"{host}: its certificate is not trusted ({said}); set SSL_CERT_FILE or {remedy}") from None
        raise _Lost(f"{host} cannot be reached ({unreached.reason}); check the network, or {remedy}") from None
    except (HTTPException, ConnectionError, TimeoutError) as broken:
        raise _Lost(f"{host} cannot be reached ({broken or type(broken).__name__}); check the network, or {remedy}") from None
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise UserError(
                f"{file.path.name}: {host} answers with a web page instead, as a proxy does that wants a login; "
                f"sign in to the network, or {remedy}"
            )
        part = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
        length = int(response.headers["Content-Length"] or 0)
        yield response, int(part[1]) if response.status == 206 and part else 0, length


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
