"""A statement is accepted for one image, with a trusted signature and the report of a passed test; anything else is refused."""

import dataclasses
import hashlib
import json
import os
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import LockedEnvironment
from smokehouse.proofs import signing
from smokehouse.proofs.attestation import TEST_RESULT, open_statement, statement
from smokehouse.proofs.signing import BUNDLE, STATEMENT, SignedStatement, Signer, sign
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


def _payload(edit: Edit) -> Edit:
    def edited(bundle: dict[str, Any]) -> None:
        envelope = bundle["dsseEnvelope"]
        content = json.loads(b64decode(envelope["payload"]))
        edit(content)
        envelope["payload"] = b64encode(json.dumps(content).encode()).decode()

    return edited


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_payload(lambda content: content["subject"][0]["digest"].update(sha256="e" * 64)), "is not signed by the key"),
        (_payload(lambda content: content["predicate"].update(passedTests=[])), "is not signed by the key"),
        (_payload(lambda content: content.update(predicateType="https://slsa.dev/provenance/v1")), "is not signed by the key"),
        (lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "is not signed by the key"),
        (lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"), "is not a Sigstore bundle"),
        (lambda bundle: bundle["dsseEnvelope"].update(payload="%%"), "is not a Sigstore bundle"),
        (lambda bundle: bundle["dsseEnvelope"].update(signatures=[]), "is not a Sigstore bundle"),
        (lambda bundle: bundle.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"), "is not a Sigstore"),
        (lambda bundle: bundle.pop("verificationMaterial"), "is not a Sigstore bundle"),
    ],
    ids=[
        "another subject",
        "edited result",
        "another predicate",
        "another signature",
        "another type",
        "no payload",
        "no signature",
        "another version",
        "no material",
    ],
)
def test_an_edited_statement_is_refused(root: Path, keys: Path, edit: Edit, said: str) -> None:
    signed = sign(statement(reports.report(DIGEST, LOCK), "tiny", DIGEST), Signer(keys / "ours.key"))
    bundle, locked = json.loads(signed.bundle), complete_reports.locked(root)
    edit(bundle)
    with pytest.raises(UserError, match=said) as raised:
        check(Checkout(root), SignedStatement(json.dumps(bundle).encode()), Signer(keys / "ours.pub"), DIGEST, locked)
    assert str(raised.value).startswith(f"{DIGEST}: its statement ")


def test_what_two_parsers_read_differently_is_refused(root: Path, keys: Path) -> None:
    """Go takes the last of two equal keys and Python, too, but neither has to."""
    signed = sign(statement(reports.report(DIGEST, LOCK), "tiny", DIGEST), Signer(keys / "ours.key"))
    locked = complete_reports.locked(root)
    twice = signed.bundle.replace(b'"payloadType"', b'"payloadType":"application/vnd.in-toto+json","payloadType"', 1)
    assert twice != signed.bundle
    with pytest.raises(UserError, match="key 'payloadType' occurs twice"):
        check(Checkout(root), SignedStatement(twice), Signer(keys / "ours.pub"), DIGEST, locked)
    payload = statement(reports.report(DIGEST, LOCK), "tiny", DIGEST).replace(b'"subject"', b'"subject":[],"subject"', 1)
    with pytest.raises(UserError, match=r"its signed payload is not a test-result statement .*key 'subject' occurs twice"):
        check(Checkout(root), sign(payload, Signer(keys / "ours.key")), Signer(keys / "ours.pub"), DIGEST, locked)


def test_one_bundle_is_written_as_sigstore_specifies_and_read_by_cosign_2_and_3(
    keys: Path, cosign: Path, cosign_2: Path, tmp_path: Path
) -> None:
    """Version 2 needs the subject itself, and a trusted root to ask no service for; 3 is what we call."""
    subject = tmp_path / "manifest"
    subject.write_bytes(b"an image")
    digest = f"sha256:{hashlib.sha256(b'an image').hexdigest()}"
    bundle = json.loads(sign(statement(reports.report(digest, LOCK), "tiny", digest), Signer(keys / "ours.key")).bundle)
    assert bundle["mediaType"] == BUNDLE
    assert set(bundle) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
    assert set(bundle["verificationMaterial"]) == {"publicKey"}
    (tmp_path / "bundle.json").write_text(json.dumps(bundle))
    root = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
    (tmp_path / "root.json").write_text(json.dumps(root | {"tlogs": [], "ctlogs": [], "certificateAuthorities": []}))
    command: list[str | Path] = [
        "--bundle",
        tmp_path / "bundle.json",
        "--new-bundle-format",
        "--trusted-root",
        tmp_path / "root.json",
    ]
    command += ["--insecure-ignore-tlog=true", "--type", TEST_RESULT]
    for folder in (cosign_2, cosign):
        for key, code in (("ours", 0), ("other", 1)):
            whole: list[str | Path] = [
                folder / "cosign",
                "verify-blob-attestation",
                "--key",
                keys / f"{key}.pub",
                *command,
                subject,
            ]
            ended = subprocess.run(whole, capture_output=True, text=True, timeout=120)
            assert (ended.returncode != 0) == code, ended.stderr


def test_an_older_cosign_is_named(keys: Path, root: Path, cosign_2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = sign(statement(reports.report(DIGEST, LOCK), "tiny", DIGEST), Signer(keys / "ours.key"))
    locked = complete_reports.locked(root)
    monkeypatch.setenv("PATH", str(cosign_2), prepend=":")
    said = "cosign: expected version 3 or later, found an older one; install 3"
    with pytest.raises(UserError, match=said):
        sign(statement(reports.report(DIGEST, LOCK), "tiny", DIGEST), Signer(keys / "ours.key"))
    with pytest.raises(UserError, match=said):
        check(Checkout(root), signed, Signer(keys / "ours.pub"), DIGEST, locked)


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
    assert (
        open_statement(
            sign(signing.statement("https://slsa.dev/provenance/v1", {}, "tiny", DIGEST), Signer(keys / "ours.key")),
            Signer(keys / "ours.pub"),
            DIGEST,
        )
        is None
    )
    signed = sign(b'{"predicateType": "something else"}', Signer(keys / "ours.key"))
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
    envelope: dict[str, Any] = {"payloadType": "application/vnd.in-toto+json", "payload": b64encode(payload).decode()}
    envelope["signatures"] = [{"sig": b64encode(b"signature").decode()}]
    bundle = {"mediaType": BUNDLE, "verificationMaterial": {"certificate": {"rawBytes": ""}}, "dsseEnvelope": envelope}
    who = Signer(identity="https://github.com/x", issuer="https://issuer.example")
    said = rf"^{DIGEST}: cosign cannot reach Sigstore to verify .*sigstore\.dev.*; fix the network connection$"
    with pytest.raises(UserError, match=said):
        check(Checkout(root), SignedStatement(json.dumps(bundle).encode()), who, DIGEST, complete_reports.locked(root))


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
