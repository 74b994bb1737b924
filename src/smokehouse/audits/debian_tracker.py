"""Records of Debian's security tracker: what is known of each source package in each release.

See: https://www.debian.org/security/ and https://security-team.debian.org/security_tracker.html
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from smokehouse.audits.debian_version import sort_key
from smokehouse.audits.documents import InvalidError, one_line
from smokehouse.audits.model import Package, Severity, Vulnerability
from smokehouse.audits.osv import ID
from smokehouse.errors import first_of

# The tracker's urgencies, of which some have a remark in stars.
_SEVERITIES: dict[str, Severity] = {"high": "high", "medium": "moderate", "low": "low", "unimportant": "unimportant"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Release(_Model):
    status: Literal["open", "resolved", "undetermined"]
    fixed_version: str | None = None
    urgency: str = ""
    nodsa: str | None = None
    nodsa_reason: str | None = None


class _Issue(_Model):
    description: str = ""
    releases: dict[str, _Release]


Issues = dict[Annotated[str, StringConstraints(pattern=f"^{ID}$")], _Issue]
_ISSUES: TypeAdapter[Issues] = TypeAdapter(Issues)


def parse_source(data: Any, source: str) -> Issues:
    """Return the issues of a source package by name; raises InvalidError where they are not the tracker's."""
    try:
        return _ISSUES.validate_python(data)
    except ValidationError as invalid:
        raise InvalidError(f"not records of Debian's tracker: {source}.{first_of(invalid, 'record')}") from None


def releases_in(sources: Iterable[Any]) -> Iterator[str]:
    """Yield the releases that records of source packages are about, also such as are not parsed."""
    for source in sources:
        for issue in source.values() if isinstance(source, dict) else ():
            if isinstance(issue, dict) and isinstance(issue.get("releases"), dict):
                yield from issue["releases"]


def vulnerabilities_of(issues: Issues, package: Package, suite: str) -> list[Vulnerability]:
    """Return which of `issues`, those of its source package, a Debian package of the release `suite` has."""
    found = []
    for name, issue in issues.items():
        release = issue.releases.get(suite)
        if release is None:
            continue
        affected, note = _affects(release, package.source_version)
        if affected:
            stated = release.urgency.strip("*")
            found.append(
                Vulnerability(
                    id=name,
                    aliases=frozenset(),
                    summary=one_line(issue.description),
                    severity=_SEVERITIES.get(stated, "unknown"),
                    fixed=one_line(release.fixed_version or ""),
                    note="; ".join(text for text in (note, _reason(release)) if text),
                )
            )
    return found


def _affects(release: _Release, version: str) -> tuple[bool, str]:
    """Return whether a version of the source package is affected, and a note where that cannot be excluded.

    A fixed version 0 says that the release never had the issue.
    """
    if release.status == "undetermined":
        return True, "Debian has not determined whether it is affected"
    if release.status == "open":
        return True, ""
    if release.fixed_version is None:
        return True, "Debian does not say which version resolved it, so it cannot be excluded"
    try:
        return sort_key(version) < sort_key(release.fixed_version), ""
    except ValueError as invalid:
        return True, f"{invalid}, so it cannot be excluded"


def _reason(release: _Release) -> str:
    reasons = (release.nodsa_reason, release.nodsa)
    text = one_line(": ".join(reason for reason in reasons if reason), 200)
    return f"no Debian advisory ({text})" if text else ""
