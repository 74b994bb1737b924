"""Ask vulnerability services over the network: OSV's for PyPI packages, Debian's tracker for Debian packages.

See: https://google.github.io/osv.dev/api/
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from packaging.utils import canonicalize_name
from packaging.version import Version

from smokehouse.audits import osv
from smokehouse.audits.database import MAX_TRACKER, Database, as_json, parse_tracker
from smokehouse.audits.documents import InvalidError
from smokehouse.audits.model import Package
from smokehouse.audits.osv import Record
from smokehouse.console import progress, status
from smokehouse.errors import UserError

OSV = "https://api.osv.dev"
TRACKER = "https://security-tracker.debian.org/tracker/data/json"
_DEADLINE = 300.0  # seconds for all requests together
_TIMEOUT = (10.0, 30.0)  # seconds to connect, and without a byte
_MAX_REPLY = 32 << 20  # bytes
_BATCH = 500  # packages in one request; the service accepts 1000
_MAX_PAGES = 100
_ATTEMPTS = 3
_PAUSE = 0.5  # seconds before the second attempt, then doubling
_REMEDY = "try again later, or use --database DIR"


class _Client:
    """A session with a deadline for all of its requests, of bounded replies."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "smokehouse"
        self._until = time.monotonic() + _DEADLINE

    def request(self, url: str, content: object = None, limit: int = _MAX_REPLY) -> bytes:
        """Return the reply to a GET, or to a POST of the JSON `content`; raises UserError."""
        host, method = urlsplit(url).netloc, "GET" if content is None else "POST"
        for attempt in range(_ATTEMPTS):
            try:
                with self._session.request(
                    method, url, json=content, timeout=_TIMEOUT, stream=True, allow_redirects=False
                ) as reply:
                    if reply.status_code == 200:
                        return self._body(reply, host, limit)
                    problem = f"status {reply.status_code} {reply.reason}"
                    if reply.status_code not in (429, 500, 502, 503, 504):
                        break
            except requests.RequestException as broken:
                problem = _cause(broken)
            if attempt + 1 < _ATTEMPTS:
                time.sleep(max(0.0, min(_PAUSE * 2**attempt, self._until - time.monotonic())))
            self._check(host)
        raise UserError(f"{host}: expected an answer, found {problem}; {_REMEDY}")

    def _body(self, reply: requests.Response, host: str, limit: int) -> bytes:
        body = bytearray()
        for chunk in reply.iter_content(1 << 16):
            body += chunk
            self._check(host)
            if len(body) > limit:
                raise UserError(f"{host}: expected a reply of at most {limit >> 20} MiB, found more; {_REMEDY}")
        return bytes(body)

    def _check(self, host: str) -> None:
        if time.monotonic() > self._until:
            raise UserError(f"{host}: timed out after {_DEADLINE:.0f} s; {_REMEDY}")


def ask(packages: Sequence[Package], service: str, tracker: str) -> Database:
    """Return what the services know of `packages`: of OSV at the URL `service`, of Debian's tracker at the URL `tracker`.

    Raises UserError where one cannot be reached, or replies with something else.
    """
    for url in (service, tracker):
        _require_private(url)
    client = _Client()
    asked = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    python = [package for package in packages if package.ecosystem == "PyPI"]
    debian = [package for package in packages if package.ecosystem == "Debian"]
    issues = None
    if debian:
        status(f"asking {urlsplit(tracker).netloc} about {len({package.source for package in debian})} source packages")
        issues = parse_tracker(client.request(tracker, limit=MAX_TRACKER), debian, tracker)
    names = ", ".join(urlsplit(url).netloc for url, kind in ((service, python), (tracker, debian)) if kind)
    return Database(names, asked, _ask_osv(client, service.rstrip("/"), python) if python else None, issues)


def _ask_osv(client: _Client, service: str, packages: Sequence[Package]) -> dict[str, list[Record]]:
    """Return the records of each package, by its canonical name."""
    ids: dict[str, set[str]] = {}
    for start in range(0, len(packages), _BATCH):
        queries = [_query(package) for package in packages[start : start + _BATCH]]
        for _ in range(_MAX_PAGES):
            reply = as_json(client.request(f"{service}/v1/querybatch", {"queries": queries}), service, _MAX_REPLY)
            again = []
            for query, (found, token) in zip(queries, _results(reply, len(queries), service), strict=True):
                ids.setdefault(canonicalize_name(query["package"]["name"]), set()).update(found)
                again += [query | {"page_token": token}] if token else []
            if not (queries := again):
                break
        else:
            raise UserError(f"{service}: expected at most {_MAX_PAGES} pages of results, found more; {_REMEDY}")
    wanted = sorted(set().union(*ids.values()))
    records = {}
    with progress(f"reading {len(wanted)} records", len(wanted), "items") as advance:
        for name in wanted:
            records[name] = _record(client, service, name)
            advance(1)
    return {package: [records[name] for name in sorted(found)] for package, found in ids.items()}


def _query(package: Package) -> dict[str, Any]:
    public = Version(package.source_version).public
    return {"package": {"name": package.source, "ecosystem": "PyPI"}, "version": public}


def _results(reply: Any, count: int, service: str) -> list[tuple[set[str], str]]:
    """Return the IDs and the token of the next page of each query."""
    results = reply.get("results") if isinstance(reply, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise UserError(f"{service}: expected {count} results, found another reply; {_REMEDY}")
    found = []
    for result in results:
        listed = (result.get("vulns") or []) if isinstance(result, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise UserError(f"{service}: expected a list of records, found another reply; {_REMEDY}")
        names = {str(entry.get("id")) for entry in listed}
        if wrong := [name for name in sorted(names) if not re.fullmatch(osv.ID, name)]:
            raise UserError(f"{service}: expected the ID of a record, found {wrong[0][:80]!r}; {_REMEDY}")
        found.append((names, str(result.get("next_page_token") or "")))
    return found


def _record(client: _Client, service: str, name: str) -> Record:
    url = f"{service}/v1/vulns/{quote(name, safe='')}"
    try:
        record = osv.parse_record(as_json(client.request(url), url, _MAX_REPLY))
    except InvalidError as invalid:
        raise UserError(f"{url}: {invalid}; {_REMEDY}") from None
    if record.id != name:
        raise UserError(f"{url}: expected the record {name}, found {record.id}; {_REMEDY}")
    return record


def _require_private(url: str) -> None:
    """Raise UserError where others could change the answers on their way."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise UserError(f"{url}: expected an https URL, found another; only services on this machine may use http")


def _cause(broken: Exception) -> str:
    """Return the innermost reason of a failed request, without addresses of objects."""
    inner: Any = broken
    while nested := [part for part in inner.args if isinstance(part, Exception)]:
        inner = nested[-1]
    text = str(getattr(inner, "reason", None) or inner) or type(inner).__name__
    return " ".join(re.sub(r"<[^>]*>[:,]? ?|HTTPS?Connection\([^)]*\): ", "", text).split())[:200]
