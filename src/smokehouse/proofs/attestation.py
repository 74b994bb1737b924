"""Make, sign and verify statements of what was proven of an image.

A statement is an in-toto Statement v1 with a test-result predicate that contains the report, in a DSSE envelope. cosign
signs and verifies it.

See: https://github.com/in-toto/attestation/tree/main/spec/v1, https://github.com/secure-systems-lab/dsse
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError, first_of
from smokehouse.locks import LockedEnvironment
from smokehouse.programs import cosign
from smokehouse.programs.cosign import CosignError
from smokehouse.runs import report as reports
from smokehouse.runs.complete import require_complete
from smokehouse.runs.report import Report
from smokehouse.storage import strict_json

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
SIGSTORE_BUNDLE = "application/vnd.dev.cosign.bundle.v1+json"
_KEYLESS = "; keyless signing requires Sigstore and a workflow with the permission id-token: write; or use --key FILE"


@dataclass(frozen=True)
class Signer:
    """A signer: the holder of a key, by the file `key`, or an `identity` that the OIDC `issuer` confirms."""

    key: Path | None = None
    identity: str = ""
    issuer: str = ""

    def __str__(self) -> str:
        """Return the signer as messages name it."""
        return f"the key {self.key}" if self.key else f"{self.identity} ({self.issuer})"


@dataclass(frozen=True)
class SignedStatement:
    """A signed statement: its DSSE envelope and, where it was signed without a key, the Sigstore bundle of the signature."""

    envelope: bytes
    sigstore_bundle: bytes | None = None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Subject(_Model):
    name: str = ""
    digest: dict[str, str]


class _Predicate(_Model):
    report: dict[str, Any] = Field(alias="io.smokehouse.report")


class _Statement(_Model):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Subject] = Field(min_length=1, max_length=1)
    predicate_type: Literal["https://in-toto.io/attestation/test-result/v0.1"] = Field(alias="predicateType")
    predicate: _Predicate


class _Signature(_Model):
    sig: str
    keyid: str = ""


class _Envelope(_Model):
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    payload: str
    signatures: list[_Signature] = Field(min_length=1, max_length=1)


def statement(report: Mapping[str, Any], name: str, digest: str) -> bytes:
    """Return the statement, as it is signed, that the image `digest` in the repository `name` has the `report`."""
    content = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": TEST_RESULT,
        "predicate": _predicate(report),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


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


def sign(payload: bytes, signer: Signer) -> SignedStatement:
    """Sign a statement with the signer's key, or without one as the identity that cosign finds; raises UserError.

    The password of a key is COSIGN_PASSWORD.
    """
    if signer.key:
        _require_key(signer.key)
    try:
        made = cosign.sign_blob(_pre_authentication(payload), signer.key)
    except CosignError as failed:
        raise UserError(f"cannot sign the statement: {failed}{'' if signer.key else _KEYLESS}") from None
    envelope = {
        "payloadType": PAYLOAD,
        "payload": b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": b64encode(made.signature).decode()}],
    }
    return SignedStatement(json.dumps(envelope, sort_keys=True).encode(), made.bundle)


@dataclass(frozen=True)
class TrustedStatement:
    """A statement of an image, signed by a trusted signer: its predicate, and when the run in it began, in ISO 8601.

    The signer is trusted to say the truth; whether that is a proof is for `check` to decide.
    """

    digest: str
    predicate: Mapping[str, Any]
    started: datetime

    def check(self, checkout: Checkout, locked: LockedEnvironment) -> Report:
        """Return the report in the statement, verified to be complete for `locked`; raises UserError."""
        source = f"report in the statement of {self.digest}"
        data = json.dumps(self.predicate["io.smokehouse.report"]).encode()
        report = reports.parse(checkout, data, source, "do not trust it")
        report.refuse_other_image(self.digest, locked.digest)
        require_complete(checkout, report, locked, max_age=None)
        expected = _predicate(report.fields)
        if wrong := [key for key in expected if self.predicate.get(key) != expected[key]]:
            found = json.dumps(self.predicate.get(wrong[0]))[:80]
            raise UserError(f"{self.digest}: {wrong[0]}: expected what its report says, found {found}; do not trust it")
        return report


def open_statement(signed: SignedStatement, signer: Signer, digest: str) -> TrustedStatement | None:
    """Return a statement that `signer` made of the image `digest`, None where it is not of a test.

    Raises UserError where somebody else signed it, or it is of another image.
    """
    payload, signature = _open_envelope(signed.envelope, digest)
    _verify_signature(signed, payload, signature, signer, digest)
    try:
        content = strict_json.parse(payload)
        if isinstance(content, dict) and content.get("predicateType", TEST_RESULT) != TEST_RESULT:
            return None
        found = _Statement.model_validate(content)
        started = datetime.fromisoformat(str(found.predicate.report.get("started")))
        if started.tzinfo is None:
            raise ValueError("started has no time zone")
    except ValueError as invalid:
        problem = first_of(invalid)
        raise UserError(f"{digest}: its signed payload is not a test-result statement ({problem}); do not trust it") from None
    subject = found.subject[0].digest.get("sha256", "")
    if f"sha256:{subject}" != digest:
        raise UserError(f"{digest}: expected a statement of this image, found one of sha256:{subject}; do not trust it")
    return TrustedStatement(digest, content["predicate"], started)


def require_signer(signer: Signer) -> None:
    """Raise UserError where the key of a trusted `signer` is not found, or neither key nor identity say who it is."""
    if signer.key:
        _require_key(signer.key)
    elif not (signer.identity and signer.issuer):
        raise UserError("verify: expected a trusted key, or an identity and its issuer, found an empty one; specify --key FILE")


def _open_envelope(envelope: bytes, digest: str) -> tuple[bytes, bytes]:
    """Return the payload and the signature in a DSSE envelope; raises UserError."""
    try:
        found = _Envelope.model_validate(strict_json.parse(envelope))
        return b64decode(found.payload, validate=True), b64decode(found.signatures[0].sig, validate=True)
    except ValueError as invalid:  # of JSON, of the model, or of base64
        problem = first_of(invalid)
    raise UserError(f"{digest}: its statement is not a DSSE envelope ({problem}); do not trust it")


def _verify_signature(signed: SignedStatement, payload: bytes, signature: bytes, signer: Signer, digest: str) -> None:
    """Verify that `signature` is of `payload` and by `signer`; raises UserError."""
    blob = _pre_authentication(payload)
    try:
        if signer.key:
            _require_key(signer.key)
            cosign.verify_blob(blob, signature, signer.key)
        elif signed.sigstore_bundle is None:
            raise UserError(f"{digest}: its statement was signed with a key; specify the public key with --key FILE")
        else:
            _refuse_other_signature(signed.sigstore_bundle, signature, digest)
            cosign.verify_blob_bundle(blob, signed.sigstore_bundle, signer.identity, signer.issuer)
    except CosignError as failed:
        if not signer.key and re.search(r"dial tcp|i/o timeout|TLS handshake", str(failed)):
            problem = f"cosign cannot reach Sigstore to verify its statement ({failed}); fix the network connection"
        else:
            problem = f"its statement is not signed by {signer}: {failed}; do not trust it"
        raise UserError(f"{digest}: {problem}") from None


def _pre_authentication(payload: bytes) -> bytes:
    """Return what DSSE signs: the payload with its type, so that neither can be replaced."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _refuse_other_signature(sigstore_bundle: bytes, signature: bytes, digest: str) -> None:
    try:
        same = b64decode(strict_json.parse(sigstore_bundle)["base64Signature"]) == signature
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"{digest}: its statement and the Sigstore bundle have different signatures; do not trust it")


def _require_key(key: Path) -> None:
    if not key.is_file():
        raise UserError(f"{key}: key not found; create a pair with cosign generate-key-pair, or specify another with --key")
