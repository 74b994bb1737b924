"""What is audited, and what is known of it: packages, targets, vulnerabilities, findings."""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

Ecosystem = Literal["PyPI", "Debian"]
Severity = Literal["critical", "high", "moderate", "low", "unimportant", "unknown"]


@dataclass(frozen=True, order=True)
class Package:
    """A locked package. `source` and `source_version` are those that advisories know it by: of Debian, the source package."""

    ecosystem: Ecosystem
    name: str
    version: str
    source: str
    source_version: str

    @property
    def purl(self) -> str:
        """The package URL, without qualifiers."""
        place = "pypi/" if self.ecosystem == "PyPI" else "deb/debian/"
        return f"pkg:{place}{quote(self.name)}@{quote(self.version, safe=':')}"


@dataclass(frozen=True)
class Target:
    """What is audited together: an environment, or the Debian base of images (`name` empty).

    `file` is the file of the checkout that pins the packages, `digest` the SHA-256 of the lock, `lines` has the line of each
    package in `file`.
    """

    name: str
    file: str
    digest: str
    packages: tuple[Package, ...]
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name or "Debian base"


@dataclass(frozen=True)
class Vulnerability:
    """What one record says of a package: its names, the version that fixes it, and how severe it is.

    `fixed` is empty where no fixed version is known. `note` is what the record says besides, such as Debian's reason for no
    advisory, or why it cannot be excluded.
    """

    id: str
    aliases: frozenset[str]
    summary: str
    severity: Severity
    fixed: str
    note: str = ""

    @property
    def names(self) -> frozenset[str]:
        """All names of the vulnerability."""
        return self.aliases | {self.id}


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a package: one, however many records there are of it."""

    package: Package
    id: str
    aliases: tuple[str, ...]
    summary: str
    severity: Severity
    fixed: str
    note: str

    @property
    def names(self) -> frozenset[str]:
        """All names of the vulnerability."""
        return frozenset({self.id, *self.aliases})


_ORDER: tuple[Severity, ...] = ("critical", "high", "moderate", "low", "unimportant", "unknown")


def merge(package: Package, found: list[Vulnerability]) -> list[Finding]:
    """Return one finding for each vulnerability among the records `found` of a package: records that share a name are one."""
    groups: list[list[Vulnerability]] = []
    for vulnerability in found:
        same = [group for group in groups if any(vulnerability.names & other.names for other in group)]
        groups = [group for group in groups if group not in same] + [[*(one for group in same for one in group), vulnerability]]
    findings = []
    for group in groups:
        names = sorted({name for one in group for name in one.names}, key=lambda name: (not name.startswith("CVE-"), name))
        fixed = sorted({one.fixed for one in group if one.fixed})
        findings.append(
            Finding(
                package=package,
                id=names[0],
                aliases=tuple(names[1:]),
                summary=next((one.summary for one in group if one.summary), ""),
                severity=min((one.severity for one in group), key=_ORDER.index),
                fixed=", ".join(fixed),
                note="; ".join(sorted({one.note for one in group if one.note})),
            )
        )
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.severity), finding.id))
