"""A statement is accepted for one image, with a trusted signature and the report of a passed test; anything else is refused."""

import dataclasses
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import LockedEnvironment
from smokehouse.proofs.attestation import (
    PAYLOAD,
    STATEMENT,
    TEST_RESULT,
    SignedStatement,
    Signer,
    open_statement,
    sign,
    statement,
)
from smokehouse.runs.report import Report, parse, read

from ...faults import complete_reports
from .. import reports

DIGEST = complete_reports.DIGEST
OTHER = f"sha256:{'e' * 64}"
LOCK = "a" * 64
Edit = Callable[[dict[str, Any]], None]


def test_a_statement_is_read_by_whom_it_is_for(root: Path, keys: Path) -> None:
    report, locked = complete_reports.report(root), complete_reports.locked(root)
    payload = statement(report, "ghcr.io/owner/tiny", DIGEST)
    content = json.loads(payload)
    assert (content["_type"], content["predicateType"]) == (STATEMENT, TEST_RESULT)
    assert content["subject"] == [{"name": "ghcr.io/owner/tiny", "digest": {"sha256": "d" * 64}}]
    assert content["predicate"]["result"] == "WARNED"
    assert {"load (ZeRO-3)", "flipped bit (ZeRO-2)"} <= {*content["predicate"]["passedTests"]}
    assert content["predicate"]["warnedTests"] == ["mixed modality (ZeRO-3)", "mixed modality (ZeRO-2)"]
    assert {"name": "lock.json", "digest": {"sha256": locked.digest}} in content["predicate"]["configuration"]
    signed = sign(payload, Signer(keys / "ours.key"))
    assert check(Checkout(root), signed, Signer(keys / "ours.pub"), DIGEST, locked).fields == report
    report = reports.report(DIGEST, LOCK)
    assert parse(Checkout(root), json.dumps(report).encode(), "a report", "run it").summary == (
        "2 checks and 1 controls passed under ZeRO-2, ZeRO-3 with torch 2.6.0+cu124 on cpu, gloo, fp32, 2 ranks; "
        "A CPU (2 CPUs, 8 GB), 2026-11-22T05:00:00+00:00"
    )


def check(checkout: Checkout, signed: SignedStatement, signer: Signer, digest: str, locked: LockedEnvironment) -> Report:
    """Return the report in a statement that `signer` made, which has to be a proof."""
    found = open_statement(signed, signer, digest)
    assert found
    return found.check(checkout, locked)


def _payload(edit: Edit) -> Callable[[dict[str, Any]], None]:
    def edited(envelope: dict[str, Any]) -> None:
        content = json.loads(b64decode(envelope["payload"]))
        edit(content)
        envelope["payload"] = b64encode(json.dumps(content).encode()).decode()

    return edited


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_payload(lambda content: content["subject"][0]["digest"].update(sha256="e" * 64)), "is not signed by the key"),
        (_payload(lambda content: content["predicate"].update(passedTests=[])), "is not signed by the key"),
        (lambda envelope: envelope["signatures"][0].update(sig="AAAA"), "is not signed by the key"),
        (lambda envelope: envelope.update(payloadType="text/plain"), "is not a DSSE envelope"),
        (lambda envelope: envelope.update(payload="%%"), "is not a DSSE envelope"),
        (lambda envelope: envelope.update(signatures=[]), "is not a DSSE envelope"),
    ],
    ids=["another subject", "edited result", "another signature", "another type", "no payload", "no signature"],
)
def test_an_edited_statement_is_refused(root: Path, keys: Path, edit: Edit, said: str) -> None:
    signed = sign(statement(complete_reports.report(root), "tiny", DIGEST), Signer(keys / "ours.key"))
    locked = complete_reports.locked(root)
    envelope = json.loads(signed.envelope)
    edit(envelope)
    with pytest.raises(UserError, match=said) as raised:
        check(Checkout(root), SignedStatement(json.dumps(envelope).encode()), Signer(keys / "ours.pub"), DIGEST, locked)
    assert str(raised.value).startswith(f"{DIGEST}: its statement ")


def test_a_signature_by_another_key_or_of_another_image_is_refused(root: Path, keys: Path) -> None:
    checkout, locked = Checkout(root), complete_reports.locked(root)
    signed = sign(statement(complete_reports.report(root), "tiny", DIGEST), Signer(keys / "ours.key"))
    with pytest.raises(UserError, match=r"is not signed by the key .*/other\.pub"):
        check(checkout, signed, Signer(keys / "other.pub"), DIGEST, locked)
    with pytest.raises(UserError, match=f"{OTHER}: expected a statement of this image, found one of {DIGEST}; do not trust it"):
        check(checkout, signed, Signer(keys / "ours.pub"), OTHER, locked)
    with pytest.raises(
        UserError, match=f"expected a report of lock.json {'b' * 64}, found one of {locked.digest}; do not trust it"
    ):
        check(checkout, signed, Signer(keys / "ours.pub"), DIGEST, dataclasses.replace(locked, digest="b" * 64))
    with pytest.raises(UserError, match="was signed with a key; specify the public key with --key FILE"):
        check(checkout, signed, Signer(identity="https://github.com/x", issuer="https://issuer.example"), DIGEST, locked)
    # Valid signatures of invalid statements: the key alone proves nothing.
    report = complete_reports.report(root) | {"image": OTHER}
    signed = sign(statement(report, "tiny", DIGEST), Signer(keys / "ours.key"))
    with pytest.raises(UserError, match=f"expected a report of image {DIGEST}, found one of image {OTHER}; do not trust it"):
        check(checkout, signed, Signer(keys / "ours.pub"), DIGEST, locked)
    signed = sign(b'{"_type": "something else"}', Signer(keys / "ours.key"))
    with pytest.raises(UserError, match="its signed payload is not a test-result statement"):
        check(checkout, signed, Signer(keys / "ours.pub"), DIGEST, locked)


def test_what_takes_a_network_says_so(root: Path, cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyless signing and verifying by the real cosign, which has no network."""
    alone = tmp_path / "bin" / "cosign"
    alone.parent.mkdir()
    alone.write_text(f'#!/bin/sh\nexec unshare --net {cosign}/cosign "$@"\n')
    alone.chmod(0o755)
    monkeypatch.setenv("PATH", str(alone.parent), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    payload = statement(reports.report(DIGEST, LOCK), "tiny", DIGEST)
    with pytest.raises(
        UserError,
        match=r"^cannot sign the statement: .*sigstore\.dev.*; keyless signing requires Sigstore .*; or use --key FILE$",
    ):
        sign(payload, Signer())
    signature = b64encode(b"signature").decode()
    envelope = {"payloadType": PAYLOAD, "payload": b64encode(payload).decode(), "signatures": [{"sig": signature}]}
    bundle = json.dumps({"base64Signature": signature, "cert": "", "rekorBundle": {}}).encode()
    who = Signer(identity="https://github.com/x", issuer="https://issuer.example")
    said = rf"^{DIGEST}: cosign cannot reach Sigstore to verify .*sigstore\.dev.*; fix the network connection$"
    with pytest.raises(UserError, match=said):
        check(
            Checkout(root), SignedStatement(json.dumps(envelope).encode(), bundle), who, DIGEST, complete_reports.locked(root)
        )


def test_a_key_that_is_not_there_or_not_open_is_named(root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = statement(reports.report(DIGEST, LOCK), "tiny", DIGEST)
    with pytest.raises(UserError, match=r"nowhere\.key: key not found; create a pair"):
        sign(payload, Signer(keys / "nowhere.key"))
    monkeypatch.setenv("COSIGN_PASSWORD", "wrong")
    with pytest.raises(UserError, match="the key's password is not COSIGN_PASSWORD"):
        sign(payload, Signer(keys / "ours.key"))
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(UserError, match="cosign not found"):
        sign(payload, Signer(keys / "ours.key"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": OTHER}, f"expected a report of image {DIGEST}, found one of image {OTHER}; run it"),
        ({"image": None}, f"expected a report of image {DIGEST}, found one of an environment outside an image; run it"),
        (
            {"lock": {"requirements.txt": "0" * 64, "lock.json": "b" * 64}},
            f"expected a report of lock.json {LOCK}, found one of {'b' * 64}; run it",
        ),
        (
            {"verdict": "failed", "failure": "rank 1 died"},
            f"smoke test of {DIGEST} failed (rank 1 died), so it proves nothing; fix it, then run it",
        ),
        (
            {"verdict": "failed", "checks": [reports.check("load", "check", 3, "failed")]},
            f"smoke test of {DIGEST} failed (load), so",
        ),
        (
            {"world_size": 0},
            "invalid report: world_size: 0 is less than the minimum of 1 (see smoke_tests/report.schema.json); run it",
        ),
        ({"nonsense": 1}, "invalid report: the report: Additional properties are not allowed ('nonsense' was unexpected)"),
        ({"checks": [reports.check("load", "check", 3, "failed")]}, "invalid report: checks.0.verdict: "),
    ],
    ids=[
        "another image",
        "no image",
        "another lock",
        "failed",
        "failed check",
        "schema",
        "unknown field",
        "not passed",
    ],
)
def test_a_report_that_proves_nothing_is_refused(root: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    place = tmp_path / "report.json"
    place.write_text(json.dumps(reports.report(DIGEST, LOCK, **changes)))
    with pytest.raises(UserError) as raised:
        read(Checkout(root), place, "tiny", "run it").refuse_other_image(DIGEST, LOCK)
    assert str(raised.value).startswith(f"{place}: ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "report not found; run it"),
        ("{", "invalid report: not JSON ("),
        ("[]", "invalid report: the report: [] is not of type 'object'"),
        (json.dumps(reports.report(DIGEST, LOCK, environment="other")), "environment 'tiny', found one of 'other'; run it"),
        (" " * (8 << 20) + "{}", "expected a report of at most 8 MiB, found a larger file; run it"),
    ],
    ids=["missing", "no JSON", "no object", "another environment", "too large"],
)
def test_what_is_no_report_is_refused(root: Path, tmp_path: Path, text: str | None, said: str) -> None:
    place = tmp_path / "report.json"
    if text is not None:
        place.write_text(text)
    with pytest.raises(UserError) as raised:
        read(Checkout(root), place, "tiny", "run it")
    assert said in str(raised.value)
