"""Attestations: what was seen of an image, as a signed statement that travels with it; cosign signs and checks.

A statement is an in-toto Statement v1 with a test-result predicate, in a DSSE envelope
(https://github.com/in-toto/attestation/tree/main/spec/v1, https://github.com/secure-systems-lab/dsse).
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError, first_of
from smokehouse.programs import cosign
from smokehouse.programs.cosign import CosignError
from smokehouse.runs.report import refuse_report

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
BUNDLE = "application/vnd.dev.cosign.bundle.v1+json"
_KEYLESS = "; without --key FILE, Sigstore has to be reached and to know this workflow, whose permissions need id-token: write"


@dataclass(frozen=True)
class Signer:
    """Who signs or is to have signed: the holder of a `key` (a file), or an `identity` that an `issuer` vouches for."""

    key: Path | None = None
    identity: str = ""
    issuer: str = ""


@dataclass(frozen=True)
class Signed:
    """A signed statement: its DSSE envelope and, where it was signed without a key, cosign's bundle for it."""

    envelope: bytes
    bundle: bytes | None = None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Subject(_Model):
    name: str = ""
    digest: dict[str, str]


class _Predicate(_Model):
    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: list[dict[str, Any]]
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
    """Return the statement that `report` was seen of the image `digest` in the repository `name`, as it is signed."""
    verdicts: dict[str, list[str]] = {"passed": [], "known-issue": [], "failed": []}
    for check in report["checks"]:
        stage = f" (ZeRO-{check['zero_stage']})" if check["zero_stage"] else ""
        verdicts[check["verdict"]].append(f"{check['name']}{stage}")
    content = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": TEST_RESULT,
        "predicate": {
            # WARNED is in-toto's word for a test that passed with something to know.
            "result": "FAILED" if report["verdict"] != "passed" else "WARNED" if verdicts["known-issue"] else "PASSED",
            "configuration": [{"name": file, "digest": {"sha256": sha256}} for file, sha256 in sorted(report["lock"].items())],
            "passedTests": verdicts["passed"],
            "warnedTests": verdicts["known-issue"],
            "failedTests": verdicts["failed"],
            "io.smokehouse.report": report,
        },
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def sign(payload: bytes, signer: Signer) -> Signed:
    """Sign a statement with the signer's key, or without one with the identity that cosign finds; raises UserError.

    The password of a key is COSIGN_PASSWORD.
    """
    if signer.key:
        _refuse_no_key(signer.key)
    try:
        made = cosign.sign_blob(_pre_authentication(payload), signer.key)
    except CosignError as failed:
        raise UserError(f"the statement cannot be signed: {failed}{'' if signer.key else _KEYLESS}") from None
    envelope = {
        "payloadType": PAYLOAD,
        "payload": b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": b64encode(made.signature).decode()}],
    }
    return Signed(json.dumps(envelope, sort_keys=True).encode(), made.bundle)


def check(checkout: Checkout, signed: Signed, signer: Signer, digest: str, lock: str) -> dict[str, Any]:
    """Return the report in a signed statement, seen to be signed by `signer`, and to be of the image and the lock.

    Raises UserError.
    """
    try:
        envelope = _Envelope.model_validate_json(signed.envelope)
        payload = b64decode(envelope.payload, validate=True)
        raw = b64decode(envelope.signatures[0].sig, validate=True)
    except ValidationError as invalid:
        raise UserError(f"{digest}: its statement is no DSSE envelope ({first_of(invalid)}); do not trust it") from None
    except ValueError as broken:
        raise UserError(f"{digest}: its statement is no DSSE envelope ({broken}); do not trust it") from None
    blob = _pre_authentication(payload)
    try:
        if signer.key:
            _refuse_no_key(signer.key)
            cosign.verify_blob(blob, raw, signer.key)
        elif signed.bundle is None:
            raise UserError(f"{digest}: its statement was signed with a key; name the public one: --key FILE")
        else:
            _refuse_other_signature(signed.bundle, raw, digest)
            cosign.verify_blob_bundle(blob, signed.bundle, signer.identity, signer.issuer)
    except CosignError as failed:
        if not signer.key and re.search(r"dial tcp|i/o timeout|TLS handshake", str(failed)):
            raise UserError(
                f"{digest}: cosign cannot ask Sigstore who signed its statement ({failed}); mend the network"
            ) from None
        raise UserError(f"{digest}: its statement is not signed by {_named(signer)}: {failed}; do not trust it") from None
    try:
        content = _Statement.model_validate_json(payload)
    except ValidationError as invalid:
        raise UserError(f"{digest}: what is signed is no statement of a test ({first_of(invalid)}); do not trust it") from None
    of = content.subject[0].digest.get("sha256", "")
    if f"sha256:{of}" != digest:
        raise UserError(f"{digest}: its statement is of another image, sha256:{of}; do not trust it")
    report = content.predicate.report
    refuse_report(checkout, report, digest, lock, f"the report in the statement of {digest}")
    if content.predicate.result == "FAILED":
        raise UserError(f"{digest}: its statement says that the test failed; do not use it")
    return report


def _pre_authentication(payload: bytes) -> bytes:
    """Return what DSSE signs: the payload with its type, so that neither stands for another."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _refuse_other_signature(bundle: bytes, signature: bytes, digest: str) -> None:
    try:
        same = b64decode(json.loads(bundle)["base64Signature"]) == signature
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"{digest}: the bundle beside its statement is of another signature; do not trust it")


def _refuse_no_key(key: Path) -> None:
    if not key.is_file():
        raise UserError(f"{key}: no such key; make a pair with cosign generate-key-pair, or name the right one with --key")


def _named(signer: Signer) -> str:
    return f"the key {signer.key}" if signer.key else f"{signer.identity} ({signer.issuer})"
