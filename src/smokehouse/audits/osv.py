"""Records of vulnerabilities in the OSV format, as the Python Packaging Advisory Database and GitHub publish them.

See: https://ossf.github.io/osv-schema/
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.audits.documents import InvalidError, one_line
from smokehouse.audits.model import Package, Severity, Vulnerability
from smokehouse.errors import first_of

ID = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
_Id = Annotated[str, StringConstraints(pattern=f"^{ID}$")]
_SEVERITIES: dict[str, Severity] = {
    "critical": "critical", "high": "high", "moderate": "moderate", "medium": "moderate", "low": "low"
}  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Event(_Model):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(_Model):
    type: str
    events: list[_Event] = Field(max_length=10_000)


class _Name(_Model):
    ecosystem: str
    name: str


class _Affected(_Model):
    package: _Name | None = None
    ranges: list[_Range] = Field(default=[], max_length=10_000)
    versions: list[str] = Field(default=[], max_length=100_000)
    ecosystem_specific: dict[str, Any] | None = None
    database_specific: dict[str, Any] | None = None


class Record(_Model):
    """A record of one vulnerability; `withdrawn` is the time since when it no longer holds."""

    id: _Id
    aliases: list[_Id] = Field(default=[], max_length=10_000)
    withdrawn: str | None = None
    summary: str = ""
    details: str = ""
    affected: list[_Affected] = Field(default=[], max_length=10_000)
    database_specific: dict[str, Any] | None = None

    @property
    def is_of_pypi(self) -> bool:
        """Whether it is about a PyPI package."""
        return bool(self.packages)

    @property
    def is_withdrawn(self) -> bool:
        """Whether it was withdrawn, at a time that has come; what is no time withdraws nothing."""
        try:
            when = datetime.fromisoformat(self.withdrawn or "")
        except ValueError:
            return False
        return when.replace(tzinfo=when.tzinfo or UTC) <= datetime.now(UTC)

    @property
    def packages(self) -> frozenset[str]:
        """The canonical names of the PyPI packages that it is about."""
        names = (entry.package for entry in self.affected)
        return frozenset(canonicalize_name(name.name) for name in names if name and name.ecosystem == "PyPI")


def parse_record(data: Any) -> Record:
    """Return a parsed OSV record; raises InvalidError where it is not one."""
    try:
        return Record.model_validate(data)
    except ValidationError as invalid:
        raise InvalidError(f"not an OSV record: {first_of(invalid, 'record')}") from None


def vulnerability_of(record: Record, package: Package) -> Vulnerability | None:
    """Return what `record` says of a PyPI package, None where it is not affected or the record was withdrawn.

    What cannot be excluded, because a range has a version that is not of PyPI, is reported with a note.
    """
    if record.is_withdrawn:
        return None
    own = canonicalize_name(package.source)
    affected = [entry for entry in record.affected if entry.package and entry.package.ecosystem == "PyPI"]
    entries = [entry for entry in affected if entry.package and canonicalize_name(entry.package.name) == own]
    version = Version(package.source_version)
    hits, notes = [entry for entry in entries if _lists(entry, version)], set()
    for entry in entries:
        if not entry.versions and not entry.ranges:
            hits.append(entry)
            notes.add("it lists neither versions nor a range of them, so none can be excluded")
        for span in entry.ranges:
            included, note = _includes(span, version)
            hits += [entry] if included else []
            notes |= {note} if included and note else set()
    if not hits:
        return None
    fixed = sorted(_fixes(hits, version))
    summary = record.summary or record.details.strip().partition("\n")[0]
    return Vulnerability(
        id=record.id,
        aliases=frozenset(record.aliases),
        summary=one_line(summary),
        severity=_severity(record, hits),
        fixed=str(fixed[0]) if fixed else "",
        note="; ".join(sorted(notes)),
    )


def _lists(entry: _Affected, version: Version) -> bool:
    """Return whether `version`, without its local part, is among the versions that are listed one by one."""
    public = Version(version.public)
    return any(_parse(text) in (version, public) for text in entry.versions)


def _includes(span: _Range, version: Version) -> tuple[bool, str]:
    """Return whether a range includes `version`, and a note where that cannot be excluded.

    See: https://ossf.github.io/osv-schema/#evaluation
    """
    if span.type == "GIT":  # commits, which no release is compared with
        return False, ""
    public = Version(version.public)  # a build such as +cu124 is of the same release
    events: list[tuple[Version | None, int, str]] = []
    limits: list[Version | None] = []
    for event in span.events:
        for kind, text in (("fixed", event.fixed), ("last_affected", event.last_affected), ("introduced", event.introduced)):
            if text is None:
                continue
            parsed = None if (kind, text) == ("introduced", "0") else _parse(text)
            if parsed is None and text != "0":
                return True, f"{kind} {text[:80]!r} is not a version of PyPI, so it cannot be excluded"
            events.append((parsed, ("fixed", "last_affected", "introduced").index(kind), kind))
        if event.limit is not None and event.limit != "*":
            limits.append(_parse(event.limit))
    if limits and not any(limit is None or public < limit for limit in limits):
        return False, ""
    vulnerable = False
    for at, _, kind in sorted(events, key=lambda event: (event[0] is not None, event[0] or Version("0"), event[1])):
        if kind == "introduced" and (at is None or public >= at):
            vulnerable = True
        elif (kind == "fixed" and at and public >= at) or (kind == "last_affected" and at and public > at):
            vulnerable = False
    return vulnerable, ""


def _fixes(entries: list[_Affected], version: Version) -> Iterator[Version]:
    """Yield the versions after `version` that fix what the entries are about."""
    for entry in entries:
        for span in entry.ranges:
            for event in span.events:
                fixed = _parse(event.fixed) if event.fixed and span.type != "GIT" else None
                if fixed and fixed > version:
                    yield fixed


def _severity(record: Record, entries: list[_Affected]) -> Severity:
    """Return the severity in words that the record's database gave it; a CVSS vector is not rated here."""
    sources = [record.database_specific, *(entry.database_specific for entry in entries)]
    sources += [entry.ecosystem_specific for entry in entries]
    stated = [str(source["severity"]).lower() for source in sources if source and isinstance(source.get("severity"), str)]
    return next((_SEVERITIES[word] for word in stated if word in _SEVERITIES), "unknown")


def _parse(text: str) -> Version | None:
    try:
        return Version(text) if len(text) < 200 and re.match(r"[\w!v]", text) else None
    except InvalidVersion:
        return None
