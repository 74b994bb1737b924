"""The result of an audit, as it is printed, committed and read back."""

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smokehouse.audits.model import Ecosystem, Finding, Severity
from smokehouse.audits.vex import Decision, Status
from smokehouse.storage import files

_Sha256 = Annotated[str, StringConstraints(pattern=f"^{files.SHA256}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decided(_Model):
    """What was decided about a finding, and until when."""

    status: Status
    justification: str
    reason: str
    expires: date
    place: str


class Found(_Model):
    """A known vulnerability of a package of the lock; `decided` is None where nothing was."""

    ecosystem: Ecosystem
    package: str
    version: str
    purl: str
    id: str
    aliases: list[str]
    summary: str
    severity: Severity
    fixed: str
    note: str
    decided: Decided | None = None


class Audited(_Model):
    """The result for one target: `name` is empty for the Debian base. `unaudited` packages have no records of their kind."""

    name: str
    file: str
    lock: _Sha256
    packages: int = Field(ge=0)
    unaudited: int = Field(ge=0)
    found: list[Found]

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name or "Debian base"

    @property
    def undecided(self) -> list[Found]:
        """What nobody has decided about."""
        return [found for found in self.found if found.decided is None]


class Audit(_Model):
    """An audit of several targets: when which database was asked, what was found, and which decisions are out of date.

    `problems` are decisions that expired or match nothing, a line each.
    """

    format: Literal[1] = 1
    database: str
    asked: str
    targets: list[Audited]
    problems: list[str] = []

    @property
    def undecided(self) -> int:
        """The number of findings that nobody has decided about."""
        return sum(len(target.undecided) for target in self.targets)

    def text(self) -> str:
        """Return it as JSON."""
        return self.model_dump_json(indent=1) + "\n"

    def of(self, target: Audited) -> "Audit":
        """Return the part about one target, as it is committed: without the state of decisions about others."""
        return self.model_copy(update={"targets": [target], "problems": []})


def found(finding: Finding, decision: Decision | None) -> Found:
    """Return a finding with the decision that applies to it."""
    package = finding.package
    decided = decision and Decided(
        status=decision.status,
        justification=decision.justification,
        reason=decision.reason,
        expires=decision.expires,
        place=decision.place,
    )
    return Found(
        ecosystem=package.ecosystem,
        package=package.name,
        version=package.version,
        purl=package.purl,
        id=finding.id,
        aliases=list(finding.aliases),
        summary=finding.summary,
        severity=finding.severity,
        fixed=finding.fixed,
        note=finding.note,
        decided=decided,
    )
