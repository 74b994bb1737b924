"""Make and check statements of what was proven of an image.

A statement is an in-toto Statement v1 with a test-result predicate that contains the report.

See: https://github.com/in-toto/attestation/tree/main/spec/v1
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError, first_of
from smokehouse.locks import LockedEnvironment
from smokehouse.oci import closed
from smokehouse.proofs import signing
from smokehouse.proofs.signing import SignedStatement, Signer
from smokehouse.runs import report as reports
from smokehouse.runs.complete import require_complete
from smokehouse.runs.report import Report

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


class _Tested(BaseModel, frozen=True):
    report: dict[str, Any] = Field(alias="io.smokehouse.report")


class _Statement(BaseModel, frozen=True):
    predicate: _Tested


def statement(report: Mapping[str, Any], name: str, digest: str) -> bytes:
    """Return the statement, as it is signed, that the image `digest` in the repository `name` has the `report`."""
    return signing.statement(TEST_RESULT, _predicate(report), name, digest)


def _predicate(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicate of the statement of a report, which is all derived from it."""
    verdicts: dict[str, list[str]] = {"passed": [], "known-issue": [], "failed": []}
    for check in report["checks"]:
        stage = f" (ZeRO-{check['zero_stage']})" if check["zero_stage"] else ""
        verdicts[check["verdict"]].append(f"{check['name']}{stage}")
    return {
        # in-toto's WARNED is for a test that passed with a warning: a known issue of the stack.
        "result": "FAILED" if report["verdict"] != "passed" else "WARNED" if verdicts["known-issue"] else "PASSED",
        "configuration": [{"name": file, "digest": {"sha256": sha256}} for file, sha256 in sorted(report["lock"].items())],
        "passedTests": verdicts["passed"],
        "warnedTests": verdicts["known-issue"],
        "failedTests": verdicts["failed"],
        "io.smokehouse.report": report,
    }


@dataclass(frozen=True)
class TrustedStatement:
    """A statement of an image, signed by a trusted signer: what is in it, and when the run began.

    The signer is trusted to say the truth; whether that is a proof is for `check` to decide.
    """

    digest: str
    content: Mapping[str, Any]
    started: datetime

    def check(self, checkout: Checkout, locked: LockedEnvironment) -> Report:
        """Return the report in the statement, verified to be complete for `locked`; raises UserError."""
        source = f"report in the statement of {self.digest}"
        data = json.dumps(self.content["predicate"]["io.smokehouse.report"]).encode()
        report = reports.parse(checkout, data, source, "do not trust it")
        report.refuse_other_image(self.digest, locked.digest)
        require_complete(checkout, report, locked, max_age=None)
        name = self.content["subject"][0].get("name")
        for path, problem in closed.differences(self.content, json.loads(statement(report.fields, name, self.digest))):
            raise UserError(f"statement of {self.digest}: {path}: {problem}; do not trust it")
        return report


def open_statement(signed: SignedStatement, signer: Signer, digest: str) -> TrustedStatement | None:
    """Return a statement that `signer` made of the image `digest`, None where it is not of a test.

    Raises UserError where somebody else signed it, or it is of another image.
    """
    content = signing.open_signed(signed, signer, digest)
    if content["predicateType"] != TEST_RESULT:
        return None
    try:
        started = _started(content)
    except ValueError as invalid:
        problem = first_of(invalid)
        raise UserError(f"{digest}: its signed payload is not a test-result statement ({problem}); do not trust it") from None
    return TrustedStatement(digest, content, started)


def claimed_start(signed: SignedStatement, digest: str) -> datetime | None:
    """Return when the run in a statement began, as whoever wrote it says, None where it is not of a test.

    One that does not say so may be the newest. Raises ForeignError where it is not a statement of the image `digest`.
    """
    content = signing.unverified(signed, digest)
    if content["predicateType"] != TEST_RESULT:
        return None
    try:
        return _started(content)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def _started(content: Mapping[str, Any]) -> datetime:
    """Return when the run in a statement began; raises ValueError where it does not say so."""
    started = datetime.fromisoformat(str(_Statement.model_validate(content).predicate.report.get("started")))
    if started.tzinfo is None:
        raise ValueError("started has no time zone")
    return started
