"""Ask vulnerability services over the network: OSV's for PyPI packages, Debian's tracker for Debian packages.

See: https://google.github.io/osv.dev/api/
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from packaging.utils import canonicalize_name
from packaging.version import Version

from smokehouse import clock
from smokehouse.audits import osv
from smokehouse.audits.database import MAX_TRACKER, Database, as_json, parse_tracker
from smokehouse.audits.documents import InvalidError
from smokehouse.audits.model import Package
from smokehouse.audits.osv import Record
from smokehouse.console import progress, status
from smokehouse.errors import UserError
from smokehouse.storage.transfer import Client, Limits, TransferError

OSV = "https://api.osv.dev"
TRACKER = "https://security-tracker.debian.org/tracker/data/json"
_LIMITS = Limits(connect=10.0, answer=30.0, deadline=300.0, attempts=3, pause=0.5)  # all requests have one deadline
_MAX_REPLY = 32 << 20  # bytes
_MAX_RECORD = 8 << 20  # bytes, ten times the largest record
_BATCH = 500  # packages in one request; the service accepts 1000
_MAX_PAGES = 100
_REMEDY = "try again later, or use --database DIR"


class _Client:
    """A client with a deadline for all of its requests, of bounded replies."""

    def __init__(self, limits: Limits = _LIMITS) -> None:
        self._client = Client(limits)
        self._until = clock.now() + limits.deadline

    def request(self, url: str, content: object = None, limit: int = _MAX_REPLY) -> bytes:
        """Return the reply to a GET, or to a POST of the JSON `content`; raises UserError."""
        host, method = urlsplit(url).netloc, "GET" if content is None else "POST"
        data = None if content is None else json.dumps(content).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            with self._client.ask(method, url, headers=headers, data=data, until=self._until, redirect=False) as answer:
                if answer.status != 200:
                    raise UserError(f"{host}: expected an answer, found status {answer.status} {answer.reason}; {_REMEDY}")
                body = answer.read(limit)
        except TransferError as broken:
            raise UserError(f"{host}: expected an answer, found {broken}; {_REMEDY}") from None
        if len(body) > limit:
            raise UserError(f"{host}: expected a reply of at most {limit >> 20} MiB, found more; {_REMEDY}")
        return body


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
    issues, releases = None, frozenset[str]()
    if debian:
        status(f"asking {urlsplit(tracker).netloc} about {len({package.source for package in debian})} source packages")
        issues, releases = parse_tracker(client.request(tracker, limit=MAX_TRACKER), debian, tracker)
    names = ", ".join(urlsplit(url).netloc for url, kind in ((service, python), (tracker, debian)) if kind)
    records = _ask_osv(client, service.rstrip("/"), python) if python else None
    return Database(names, asked, records, issues, releases)


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
        listed = result.get("vulns", []) if isinstance(result, dict) else None
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
        record = osv.parse_record(as_json(client.request(url, limit=_MAX_RECORD), url, _MAX_RECORD))
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
