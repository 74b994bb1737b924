"""Decisions about known vulnerabilities: OpenVEX documents in vex/, each statement with a reason and an expiry date.

OpenVEX has no member for an expiry date, and its schema allows no other members, so a statement's `status_notes` begin with
`expires YYYY-MM-DD`: other tools read the documents as they are.

See: https://github.com/openvex/spec/blob/main/OPENVEX-SPEC.md
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from smokehouse.audits.documents import InvalidError, parse_json
from smokehouse.audits.model import Finding, Package
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError, first_of
from smokehouse.storage import files

FOLDER = "vex"
_MAX_DOCUMENT = 4 << 20  # bytes
Status = Literal["not_affected", "affected", "fixed", "under_investigation"]
_Justification = Literal[
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Vulnerability(_Model):
    id: str | None = Field(default=None, alias="@id")
    name: str = Field(min_length=1)
    description: str | None = None
    aliases: list[str] = []


class _Product(_Model):
    id: str = Field(alias="@id", pattern=r"^pkg:(pypi|deb/debian)/[^@?#]+(@[^?#]+)?([?#].*)?$")


class _Statement(_Model):
    id: str | None = Field(default=None, alias="@id")
    version: int | None = None
    vulnerability: _Vulnerability
    timestamp: str | None = None
    last_updated: str | None = None
    products: list[_Product] = Field(min_length=1)
    status: Status
    supplier: str | None = None
    status_notes: str = Field(pattern=r"^expires \d{4}-\d{2}-\d{2}\b")
    justification: _Justification | None = None
    impact_statement: str | None = None
    action_statement: str | None = None
    action_statement_timestamp: str | None = None

    @model_validator(mode="after")
    def _has_reason(self) -> "_Statement":
        """Refuse a statement without the reason that its status requires, or with a date that is none."""
        date.fromisoformat(self.status_notes[8:18])
        if self.status == "not_affected" and not (self.justification and self.impact_statement):
            raise ValueError("status not_affected requires justification and impact_statement")
        if self.status == "affected" and not self.action_statement:
            raise ValueError("status affected requires action_statement")
        if not self.reason:
            raise ValueError(f"status {self.status} requires a reason: write it after the date in status_notes")
        return self

    @property
    def reason(self) -> str:
        """Why it was decided so, in the words of the statement."""
        texts = (self.impact_statement, self.action_statement, self.status_notes[18:].lstrip(" ;:,.-"))
        return next((" ".join(text.split()) for text in texts if text and any(map(str.isalnum, text))), "")


class _Document(_Model):
    context: Literal["https://openvex.dev/ns/v0.2.0"] = Field(alias="@context")
    id: str = Field(alias="@id", min_length=1)
    author: str = Field(min_length=1)
    role: str | None = None
    timestamp: str = Field(min_length=1)
    last_updated: str | None = None
    version: int = Field(ge=1)
    tooling: str | None = None
    statements: list[_Statement] = Field(min_length=1)


@dataclass(frozen=True)
class Decision:
    """What was decided about a vulnerability in some packages, until the day `expires`; `place` is where it is written."""

    place: str
    names: frozenset[str]
    products: tuple[str, ...]
    status: Status
    justification: str
    reason: str
    expires: date

    def is_about(self, package: Package) -> bool:
        """Return whether it is about this package, in this version."""
        own = unquote(package.purl)
        return any(product in (own, own.rpartition("@")[0]) for product in self.products)

    def applies_to(self, finding: Finding) -> bool:
        """Return whether it decides a finding: one of its names, in one of its packages."""
        return bool(self.names & finding.names) and self.is_about(finding.package)


def read_decisions(checkout: Checkout) -> list[Decision]:
    """Read the decisions in vex/ of a checkout; raises UserError where a document is invalid."""
    folder = checkout.root / FOLDER
    return [decision for path in sorted(folder.glob("*.json")) for decision in _read(path, checkout.relative(path))]


def _read(path: Path, name: str) -> Sequence[Decision]:
    try:
        with files.open_regular(path) as file:
            document = _Document.model_validate(parse_json(file.read(_MAX_DOCUMENT + 1), _MAX_DOCUMENT))
    except InvalidError as invalid:
        raise UserError(f"{name}: expected an OpenVEX document, found {invalid}; fix it") from None
    except ValidationError as invalid:
        raise UserError(f"{name}: invalid OpenVEX document ({first_of(invalid, 'document')}); fix it") from None
    return [
        Decision(
            place=f"{name}: statement {number}",
            names=frozenset({statement.vulnerability.name, *statement.vulnerability.aliases}),
            products=tuple(unquote(re.split(r"[?#]", product.id)[0]) for product in statement.products),
            status=statement.status,
            justification=statement.justification or "",
            reason=statement.reason,
            expires=date.fromisoformat(statement.status_notes[8:18]),
        )
        for number, statement in enumerate(document.statements, 1)
    ]
