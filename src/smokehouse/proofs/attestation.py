"""Make and check statements of what was proven of an image.

A statement is an in-toto Statement v1 with a test-result predicate that contains the report.

See: https://github.com/in-toto/attestation/tree/main/spec/v1
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError, first_of
from smokehouse.proofs import signing
from smokehouse.proofs.signing import SignedStatement, Signer
from smokehouse.runs import report as reports
from smokehouse.runs.report import Report

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Predicate(_Model):
    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: list[dict[str, Any]]
    report: dict[str, Any] = Field(alias="io.smokehouse.report")


class _Statement(_Model):
    predicate_type: Literal["https://in-toto.io/attestation/test-result/v0.1"] = Field(alias="predicateType")
    predicate: _Predicate


def statement(report: Mapping[str, Any], name: str, digest: str) -> bytes:
    """Return the statement, as it is signed, that the image `digest` in the repository `name` has the `report`."""
    verdicts: dict[str, list[str]] = {"passed": [], "known-issue": [], "failed": []}
    for check in report["checks"]:
        stage = f" (ZeRO-{check['zero_stage']})" if check["zero_stage"] else ""
        verdicts[check["verdict"]].append(f"{check['name']}{stage}")
    predicate = {
        # in-toto's WARNED is for a test that passed with a warning: a known issue of the stack.
        "result": "FAILED" if report["verdict"] != "passed" else "WARNED" if verdicts["known-issue"] else "PASSED",
        "configuration": [{"name": file, "digest": {"sha256": sha256}} for file, sha256 in sorted(report["lock"].items())],
        "passedTests": verdicts["passed"],
        "warnedTests": verdicts["known-issue"],
        "failedTests": verdicts["failed"],
        "io.smokehouse.report": report,
    }
    return signing.statement(TEST_RESULT, predicate, name, digest)


def check(checkout: Checkout, signed: SignedStatement, signer: Signer, digest: str, lock: str) -> Report:
    """Return the report in a statement, verified to be signed by `signer` and to be of the image `digest`.

    `lock` is the SHA-256 of the image's lock.json. Raises UserError.
    """
    payload = signing.open_signed(signed, signer, digest)
    try:
        content = _Statement.model_validate_json(payload)
    except ValidationError as invalid:
        problem = first_of(invalid)
        raise UserError(f"{digest}: its signed payload is not a test-result statement ({problem}); do not trust it") from None
    data = json.dumps(content.predicate.report).encode()
    report = reports.parse(checkout, data, f"report in the statement of {digest}", "do not trust it")
    report.refuse_other_image(digest, lock)
    if content.predicate.result == "FAILED":
        raise UserError(f"{digest}: expected a statement of a passed test, found result FAILED; do not use this image")
    return report
