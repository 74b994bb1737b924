"""Sign and verify in-toto statements: one Sigstore bundle each, which cosign writes and reads.

See: https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto
"""

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from smokehouse.errors import UserError, first_of
from smokehouse.programs import cosign
from smokehouse.programs.cosign import CosignError
from smokehouse.storage import strict_json

STATEMENT = "https://in-toto.io/Statement/v1"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_KEYLESS = "; keyless signing requires Sigstore and a workflow with the permission id-token: write; or use --key FILE"


class ForeignError(UserError):
    """A statement that is none, or that somebody else signed: anybody can attach one to an image."""


@dataclass(frozen=True)
class Requirements:
    """What a report has to show besides: that it ran on GPUs with NCCL, and at most `max_days` ago, None for any time."""

    gpu: bool = False
    max_days: int | None = None


@dataclass(frozen=True)
class Signer:
    """A signer: the holder of a key, by the file `key`, or an `identity` that the OIDC `issuer` confirms.

    Where it is trusted, `requirements` say for which reports.
    """

    key: Path | None = None
    identity: str = ""
    issuer: str = ""
    requirements: Requirements = Requirements()

    def __str__(self) -> str:
        """Return the signer as messages name it."""
        return f"the key {self.key}" if self.key else f"{self.identity} ({self.issuer})"


@dataclass(frozen=True)
class SignedStatement:
    """A signed statement: a Sigstore bundle. `predicate_type` is what its bundle says, before anybody has verified it."""

    bundle: bytes
    predicate_type: str = ""


class _Signature(BaseModel, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(BaseModel, frozen=True):
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    payload: str
    signatures: list[_Signature] = Field(min_length=1, max_length=1)


class _Bundle(BaseModel, frozen=True):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    material: dict[str, Any] = Field(alias="verificationMaterial")
    envelope: _Envelope = Field(alias="dsseEnvelope")


class _Subject(BaseModel, frozen=True):
    digest: dict[str, str]


class _Statement(BaseModel, frozen=True):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Subject] = Field(min_length=1)
    predicate_type: str = Field(alias="predicateType", pattern=r"^https?://[!-~]+$")


def statement(predicate_type: str, predicate: Mapping[str, Any], name: str, digest: str) -> bytes:
    """Return a statement, as it is signed, about the image `digest` in the repository `name`."""
    content = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def predicate_type(payload: bytes) -> str:
    """Return the type of the predicate of a statement that was made here."""
    return str(json.loads(payload)["predicateType"])


def sign(payload: bytes, signer: Signer) -> SignedStatement:
    """Sign a statement with the signer's key, or without one as the identity that cosign finds; raises UserError.

    The password of a key is COSIGN_PASSWORD.
    """
    if signer.key:
        _require_key(signer.key)
    try:
        signed = SignedStatement(cosign.attest(payload, signer.key), predicate_type(payload))
        if b64decode(_Bundle.model_validate(strict_json.parse(signed.bundle)).envelope.payload, validate=True) != payload:
            raise ValueError("another payload")
        return signed
    except ValueError as invalid:
        raise UserError(f"cosign: expected a bundle of the statement, found another ({first_of(invalid)}); install 3") from None
    except CosignError as failed:
        raise UserError(f"cannot sign the statement: {failed}{'' if signer.key else _KEYLESS}") from None


def require_signer(signer: Signer) -> None:
    """Raise UserError where the key of a trusted `signer` is not found, or neither key nor identity say who it is."""
    if signer.key:
        _require_key(signer.key)
    elif not (signer.identity and signer.issuer):
        raise UserError("verify: expected a trusted key, or an identity and its issuer, found an empty one; specify --key FILE")


def open_signed(signed: SignedStatement, signer: Signer, digest: str) -> dict[str, Any]:
    """Return a statement, verified to be signed by `signer` and to be of the image `digest`.

    Raises ForeignError where it is of somebody else or of another image, and UserError where that cannot be found out.
    """
    bundle, content = _read(signed, digest)
    _verify(signed.bundle, bundle, signer, digest, content)
    _require_subject(content, digest)
    return content


def unverified(signed: SignedStatement, digest: str) -> dict[str, Any]:
    """Return a statement of the image `digest` as anybody can write one; raises ForeignError where it is none."""
    _, content = _read(signed, digest)
    _require_subject(content, digest)
    return content


def _read(signed: SignedStatement, digest: str) -> tuple[_Bundle, dict[str, Any]]:
    """Return the bundle of a statement that is attached to the image `digest`, and the statement; raises ForeignError."""
    try:
        bundle = _Bundle.model_validate(strict_json.parse(signed.bundle))
        payload = b64decode(bundle.envelope.payload, validate=True)
    except ValueError as invalid:  # of JSON, of the model, or of base64
        raise ForeignError(f"{digest}: its statement is not a Sigstore bundle ({first_of(invalid)}); do not trust it") from None
    try:
        content: dict[str, Any] = strict_json.parse(payload)
        _Statement.model_validate(content)
    except ValueError as invalid:
        problem = first_of(invalid)
        raise ForeignError(
            f"{digest}: its signed payload is not a test-result statement ({problem}); do not trust it"
        ) from None
    return bundle, content


def _subject(content: Mapping[str, Any], digest: str) -> str:
    """Return the SHA-256 of the image `digest` where it is a subject of a statement, or else that of its first subject."""
    found = [str(subject["digest"].get("sha256", "")) for subject in content["subject"]]
    own = digest.removeprefix("sha256:")
    return own if own in found else found[0]


def _require_subject(content: Mapping[str, Any], digest: str) -> None:
    """Raise ForeignError where a statement is not of the image `digest`."""
    subject = _subject(content, digest)
    if f"sha256:{subject}" != digest:
        raise ForeignError(f"{digest}: expected a statement of this image, found one of sha256:{subject}; do not trust it")


def _verify(data: bytes, bundle: _Bundle, signer: Signer, digest: str, content: Mapping[str, Any]) -> None:
    """Verify the signature in a bundle; cosign reads subject and predicate from it, too. Raises UserError."""
    if signer.key:
        _require_key(signer.key)
    elif "publicKey" in bundle.material:
        raise ForeignError(f"{digest}: its statement was signed with a key; specify the public key with --key FILE")
    trusted = cosign.trust_key(signer.key) if signer.key else cosign.trust_identity(signer.identity, signer.issuer)
    try:
        cosign.verify_attestation(data, _subject(content, digest), content["predicateType"], trusted)
    except CosignError as failed:
        if not signer.key and re.search(r"dial tcp|i/o timeout|TLS handshake", str(failed)):
            problem = f"cosign cannot reach Sigstore to verify its statement ({failed}); fix the network connection"
            raise UserError(f"{digest}: {problem}") from None
        raise ForeignError(f"{digest}: its statement is not signed by {signer}: {failed}; do not trust it") from None


def _require_key(key: Path) -> None:
    if not key.is_file():
        raise UserError(f"{key}: key not found; create a pair with cosign generate-key-pair, or specify another with --key")
