"""A database of vulnerabilities in a folder: OSV records and the records of Debian's security tracker.

The folder has either or both of these, as they are published; other files are ignored:

- OSV: `*.zip`, an export of an ecosystem with a JSON file for each record, or those files in folders.
- Debian: `debian.json`, all records of the tracker in one object: source package -> issue -> what is known.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from smokehouse.audits import debian_tracker, osv
from smokehouse.audits.debian_tracker import Issues
from smokehouse.audits.documents import InvalidError, parse_json
from smokehouse.audits.model import Package, Vulnerability
from smokehouse.audits.osv import Record
from smokehouse.errors import UserError

TRACKER = "debian.json"
_MAX_RECORD = 16 << 20  # bytes
_MAX_RECORDS = 1_000_000
_MAX_EXPORT = 4 << 30  # bytes of all records of an export
MAX_TRACKER = 512 << 20  # bytes


@dataclass(frozen=True)
class Database:
    """What is known: the OSV records of each PyPI package, and the issues of each Debian source package.

    Either is None where the database has no records of that kind. `name` is for messages, `asked` the time as of which it
    answers, in UTC. `releases` are the releases of Debian that the tracker knows.
    """

    name: str
    asked: str
    records: Mapping[str, Sequence[Record]] | None
    issues: Mapping[str, Issues] | None
    releases: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path, packages: Sequence[Package]) -> "Database":
        """Read what the database in `folder` knows of `packages`; raises UserError where it is invalid or has no records."""
        if not folder.is_dir():
            raise UserError(f"{folder}: database not found; download the exports of OSV and Debian's tracker to it")
        times: dict[str, datetime] = {}  # kind -> when the newest of its files was written
        records: dict[str, list[Record]] | None = None
        names = {canonicalize_name(package.source) for package in packages if package.ecosystem == "PyPI"}
        for place, data, time in _osv_files(folder):
            try:
                record = osv.parse_record(parse_json(data, _MAX_RECORD))
            except InvalidError as invalid:
                raise UserError(f"{place}: invalid record ({invalid}); download the database again") from None
            times["PyPI"] = max(time, times.get("PyPI", time))
            if record.is_of_pypi:  # an export of another ecosystem says nothing of PyPI packages
                records = {} if records is None else records
            for name in record.packages & names:
                if records is not None:
                    records.setdefault(name, []).append(record)
        issues, releases, tracker = None, frozenset[str](), folder / TRACKER
        if tracker.is_file():
            issues, releases = parse_tracker(_read(tracker, MAX_TRACKER), packages, str(tracker))
            times["Debian"] = _modified(tracker)
        if records is None and issues is None:
            raise UserError(
                f"{folder}: expected an OSV export (*.zip, or *.json in folders) or {TRACKER}, found neither; "
                "docs/how-to/security.md says where they are published"
            )
        asked = min(times.values())  # what is older of both: it is not as new as the other
        return cls(str(folder), asked.strftime("%Y-%m-%dT%H:%M:%SZ"), records, issues, releases)

    def covers(self, package: Package, suite: str) -> bool:
        """Return whether the database has records of the package's ecosystem, of Debian those of the release `suite`."""
        return self.records is not None if package.ecosystem == "PyPI" else self.issues is not None and suite in self.releases

    def lookup(self, package: Package, suite: str) -> list[Vulnerability]:
        """Return the known vulnerabilities of a package; `suite` is the release of a Debian package."""
        if package.ecosystem == "Debian":
            return debian_tracker.vulnerabilities_of((self.issues or {}).get(package.source, {}), package, suite)
        known = (self.records or {}).get(canonicalize_name(package.source), ())
        return [found for record in known if (found := osv.vulnerability_of(record, package))]


def parse_tracker(data: bytes, packages: Sequence[Package], place: str) -> tuple[dict[str, Issues], frozenset[str]]:
    """Return the tracker's issues of the source packages of `packages`, and the releases of Debian that it knows.

    Raises UserError, calling the records `place`.
    """
    try:
        found = parse_json(data, MAX_TRACKER)
        if not isinstance(found, dict):
            raise InvalidError("not an object")
        sources = sorted({package.source for package in packages if package.ecosystem == "Debian"} & found.keys())
        known = {source: debian_tracker.parse_source(found[source], source) for source in sources}
        return known, frozenset(debian_tracker.releases_in(found.values()))
    except InvalidError as invalid:
        raise UserError(f"{place}: invalid record ({invalid}); download the database again") from None


def _osv_files(folder: Path) -> Iterator[tuple[str, bytes, datetime]]:
    """Yield the name, content and time of each OSV record in a folder."""
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip" and path.is_file():
            entries: Iterator[tuple[str, bytes, datetime]] = _members(path)
        elif path.suffix == ".json" and path.is_file() and path != folder / TRACKER:
            entries = iter([(str(path), _read(path, _MAX_RECORD), _modified(path))])
        else:
            continue
        for entry in entries:
            count += 1
            if count > _MAX_RECORDS:
                raise UserError(f"{folder}: expected at most {_MAX_RECORDS} records, found more; use one export for each kind")
            yield entry


def _members(path: Path) -> Iterator[tuple[str, bytes, datetime]]:
    """Yield the records in an export; their sizes are bounded whatever the archive says of them."""
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".json"):
                    continue
                with archive.open(member) as file:
                    data = file.read(_MAX_RECORD + 1)
                total += len(data)
                if total > _MAX_EXPORT:
                    raise UserError(
                        f"{path}: expected at most {_MAX_EXPORT >> 30} GiB, found more; download the database again"
                    )
                yield f"{path}: {member.filename}", data, _modified(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as broken:
        raise UserError(f"{path}: cannot be read ({broken}); download the database again") from None


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def as_json(data: bytes, place: str, limit: int) -> Any:
    """Return the JSON of a reply; raises UserError, calling it `place`."""
    try:
        return parse_json(data, limit)
    except InvalidError as invalid:
        raise UserError(f"{place}: invalid reply ({invalid}); try again, or use --database DIR") from None
