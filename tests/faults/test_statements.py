"""Whoever trusts a signer gets a proof or a refusal: what is missing, old, failed or of somebody else is no proof."""

import copy
import itertools
import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.programs.cosign import NO_SERVICES
from smokehouse.proofs import trust
from smokehouse.proofs.attestation import TEST_RESULT, TrustedStatement, statement
from smokehouse.proofs.compare import Verification
from smokehouse.proofs.signing import SignedStatement, Signer, sign
from smokehouse.proofs.trust import Proof, judge

from . import complete_reports
from .complete_reports import DIGEST, ago

Report = dict[str, Any]
OTHER = f"sha256:{'e' * 64}"


class Signing:
    """Signs statements with real keys, and judges what was signed as someone who trusts `ours`."""

    def __init__(self, root: Path, keys: Path) -> None:
        self.root, self.keys = root, keys
        self.report = complete_reports.report(root)
        self.locked = complete_reports.locked(root)

    def sign(self, payload: bytes, key: str = "ours") -> SignedStatement:
        """Sign a payload."""
        return sign(payload, Signer(self.keys / f"{key}.key"))

    def sign_as_it_is(self, payload: bytes) -> SignedStatement:
        """Sign any payload as another program could: cosign refuses to sign some that it does not read."""
        kind = "application/vnd.in-toto+json"
        (self.keys / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
        (self.keys / "services").write_text(json.dumps(NO_SERVICES))
        command = ["cosign", "sign-blob", "--yes", "--key", "ours.key", "--signing-config", "services"]
        subprocess.run([*command, "--bundle", "bundle", "signed"], cwd=self.keys, check=True, capture_output=True, timeout=60)
        made = json.loads((self.keys / "bundle").read_text())
        envelope: Report = {"payloadType": kind, "payload": b64encode(payload).decode()}
        envelope["signatures"] = [{"sig": made.pop("messageSignature")["signature"]}]
        return SignedStatement(json.dumps(made | {"dsseEnvelope": envelope}).encode())

    def of(self, age: timedelta, edit: Callable[[Report], object] = lambda content: None, key: str = "ours") -> SignedStatement:
        """Sign a statement of that age, edited before it is signed."""
        content = json.loads(statement(self.report | {"started": ago(age)}, "tiny", DIGEST))
        edit(content)
        return self.sign(json.dumps(content).encode(), key)

    def judge(self, *statements: SignedStatement) -> Proof:
        """Judge the statements of the image."""
        return judge(Checkout(self.root), self.locked, DIGEST, statements, Signer(self.keys / "ours.pub"))


@pytest.fixture
def signing(root: Path, keys: Path) -> Signing:
    """Signs with keys of its own."""
    return Signing(root, keys)


def fail(content: Report) -> None:
    """Let the statement say that a check failed, as an honest one does."""
    report = content["predicate"]["io.smokehouse.report"]
    failed = report["checks"][5]
    failed["verdict"] = "failed"
    for rank in failed["ranks"]:
        rank["verdict"] = "failed"
    report["verdict"] = "failed"
    content["predicate"].update(result="FAILED", failedTests=[failed["name"]])


def in_predicate(**changes: Any) -> Callable[[Report], object]:
    """Change the predicate alone."""
    return lambda content: content["predicate"].update(changes)


def in_report(**changes: Any) -> Callable[[Report], object]:
    """Change the report alone."""
    return lambda content: content["predicate"]["io.smokehouse.report"].update(changes)


def test_newest_statement_of_the_trusted_signer_counts_in_any_order(signing: Signing) -> None:
    old, failed = signing.of(timedelta(days=9)), signing.of(timedelta(days=3), fail)
    foreign = signing.of(timedelta(hours=1), key="other")
    fixed = signing.of(timedelta(hours=2))
    for given in itertools.permutations((old, failed, foreign)):
        found = signing.judge(*given)
        assert found.valid is False
        assert "so it proves nothing" in found.text
    for given in itertools.permutations((failed, foreign, fixed)):
        found = signing.judge(*given)
        assert found.valid
        assert found.text.endswith(", today")
    assert signing.judge(old).text.endswith(", 9 days ago")


def forged(signed: SignedStatement, age: timedelta, number: int, **claims: object) -> SignedStatement:
    """Return what anybody can attach without a key: a statement that says of itself how old it is, under a copied signature."""
    bundle = json.loads(signed.bundle)
    content = json.loads(b64decode(bundle["dsseEnvelope"]["payload"]))
    content["predicate"]["number"] = number
    content["predicate"]["io.smokehouse.report"].update({"started": ago(age), **claims})
    bundle["dsseEnvelope"]["payload"] = b64encode(json.dumps(content).encode()).decode()
    return SignedStatement(json.dumps(bundle).encode())


@pytest.fixture
def starts(tmp_path: Path, cosign: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many times cosign was started since it was last asked."""
    counted, stub = tmp_path / "starts", tmp_path / "counting" / "cosign"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho >> "{counted}"\nexec "{cosign / "cosign"}" "$@"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")

    def count() -> int:
        found = len(counted.read_text()) if counted.exists() else 0
        counted.unlink(missing_ok=True)
        return found

    return count


def test_of_a_thousand_statements_few_are_verified(signing: Signing, starts: Callable[[], int]) -> None:
    """Those that say that they are older than the newest of the signer are none of its newest, whoever made them."""
    passed, failed = signing.of(timedelta(days=2)), signing.of(timedelta(days=1), fail)
    older = [forged(passed, timedelta(days=3), number) for number in range(1000)]
    newer = [forged(passed, timedelta(hours=1), number) for number in range(3)]
    starts()
    assert signing.judge(*older, passed, *newer).valid
    assert starts() == 4
    assert signing.judge(*older, passed, *newer, failed).valid is False
    assert starts() == 4
    assert signing.judge(*[passed] * 1000).valid
    assert starts() == 1


@pytest.mark.parametrize("claims", [{}, {"started": "soon"}, {"started": "9999-12-31T23:59:59-14:00"}, {"started": None}])
def test_a_flood_that_says_it_is_newer_hides_no_statement(
    signing: Signing, starts: Callable[[], int], claims: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest that is verified is never an older one: past the limit nothing is proven, and a sentence says why."""
    monkeypatch.setattr(trust, "_MOST", 5)
    passed, failed = signing.of(timedelta(days=2)), signing.of(timedelta(days=1), fail)
    flood = [forged(passed, timedelta(hours=1), number, **claims) for number in range(6)]
    starts()
    for given in ((passed, *flood), (*flood, passed), (*flood[:3], passed, failed, *flood[3:])):
        found = signing.judge(*given)
        assert (found.valid, found.report) == (False, None)
        said = f"expected the newest statement by the key {signing.keys / 'ours.pub'} among 5, found {len(given)} of which"
        assert said in found.text
        assert "verify another copy of the image" in found.text
        assert starts() == 5
    assert signing.judge(*flood[:4], passed).valid
    assert signing.judge(*flood[:4], passed, failed).valid is False


def test_a_flood_as_old_as_the_newest_hides_no_failure(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_MOST", 5)
    moment = ago(timedelta(hours=1))

    def failed_then(content: Report) -> None:
        fail(content)
        content["predicate"]["io.smokehouse.report"]["started"] = moment

    passed, failed = signing.of(timedelta(), in_report(started=moment)), signing.of(timedelta(), failed_then)
    flood = [forged(passed, timedelta(), number, started=moment) for number in range(6)]
    assert signing.judge(passed, *flood, failed).valid is False
    assert signing.judge(passed, *flood[:3]).valid
    assert signing.judge(passed, *flood[:3], failed).valid is False


def test_of_two_that_are_equally_new_each_has_to_be_a_proof(signing: Signing) -> None:
    moment = ago(timedelta(hours=1))

    def at_moment(content: Report) -> None:
        content["predicate"]["io.smokehouse.report"]["started"] = moment

    def failed_then(content: Report) -> None:
        at_moment(content)
        fail(content)

    both = signing.of(timedelta(), at_moment), signing.of(timedelta(), failed_then)
    assert signing.judge(both[0]).valid
    assert signing.judge(*both).valid is False
    assert signing.judge(*both[::-1]).valid is False


FAULTS: dict[str, tuple[Callable[[Report], object], str]] = {
    "failed tests": (in_predicate(failedTests=["load (ZeRO-3)"]), 'failedTests: expected [], found ["load'),
    "passed tests": (in_predicate(passedTests=[]), "passedTests: expected ["),
    "result": (in_predicate(result="PASSED"), 'result: expected "WARNED", found "PASSED"'),
    "failed result": (in_predicate(result="FAILED"), 'result: expected "WARNED", found "FAILED"'),
    "configuration": (in_predicate(configuration=[]), "configuration: expected ["),
    "1999": (in_report(started="1999-12-31T23:59:59+00:00"), "expected a run after the lock's cut-off"),
    "the future": (in_report(started=ago(-timedelta(days=400))), "expected a run in the past"),
    "no zone": (
        in_report(started="2026-01-01T00:00:00"),
        "started has no time zone",
    ),
    "no date": (lambda content: content["predicate"]["io.smokehouse.report"].pop("started"), "is not a test-result statement"),
    "a partial run": (in_report(partial="--zero 3"), "found a partial one, with --zero 3"),
    "a check less": (
        lambda content: content["predicate"]["io.smokehouse.report"]["checks"].pop(),
        "checks and controls of the plan, found none of ",
    ),
    "another subject": (
        lambda content: content["subject"][0]["digest"].update(sha256="e" * 64),
        f"expected a statement of this image, found one of {OTHER}",
    ),
    "another image": (in_report(image=OTHER), f"found one of image {OTHER}"),
    "two subjects": (lambda content: content["subject"].append(content["subject"][0]), "subject: expected [{"),
    "no SHA-256": (lambda content: content["subject"][0].update(digest={"sha512": "e" * 128}), "expected a statement of this"),
    "of something else": (
        lambda content: content.update(predicateType="https://slsa.dev/provenance/v1"),
        "nothing: no statement of a smoke test is attached",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_signed_statement_that_is_no_proof_is_refused(signing: Signing, kind: str) -> None:
    edit, said = FAULTS[kind]
    found = signing.judge(signing.of(timedelta(hours=1), edit))
    assert (found.valid, found.report) == (False, None)
    assert said in found.text


def test_a_failure_that_is_of_several_images_is_not_overtaken_by_an_earlier_proof(signing: Signing) -> None:
    def failed_with_others(content: Report) -> None:
        fail(content)
        content["subject"].insert(0, {"name": "other", "digest": {"sha256": "e" * 64}})

    assert signing.judge(signing.of(timedelta(days=2)), signing.of(timedelta(days=1), failed_with_others)).valid is False


def test_a_statement_says_what_its_report_makes_and_nothing_else(signing: Signing) -> None:
    sound = json.loads(statement(signing.report, "tiny", DIGEST))
    count = 0

    def check(content: Report) -> None:
        TrustedStatement(DIGEST, content, datetime.now(UTC)).check(Checkout(signing.root), signing.locked)

    def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
        """Yield where a list or an object is, but for the report, whose own schema is closed."""
        if "io.smokehouse.report" not in path and isinstance(value, (dict, list)):
            yield path
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    check(sound)
    for path in places(sound):
        edited = copy.deepcopy(sound)
        place: Any = edited
        for part in path:
            place = place[part]
        if isinstance(place, dict):
            place["sha512"] = "e" * 128
        else:
            place.append(copy.deepcopy(place[0]) if place else "load (ZeRO-3)")
        with pytest.raises(UserError, match=f"^statement of {DIGEST}: "):
            check(edited)
        count += 1
    assert count > 10


def test_what_a_proof_says_is_one_line_that_steers_no_terminal(signing: Signing) -> None:
    steering = "\x1b[2J\u202e\nVERIFIED  \x9b1A"
    machine = {**signing.report["machine"], "cpu": steering}
    found = signing.judge(signing.of(timedelta(hours=1), in_report(machine=machine)))
    assert found.valid
    assert found.text.isprintable()


def test_readers_of_json_agree_on_what_was_signed(signing: Signing) -> None:
    text = statement(signing.report, "tiny", DIGEST).decode()
    assert signing.judge(signing.sign_as_it_is(text.encode())).valid
    for payload in (text.replace('"result":', '"result":"FAILED","result":'), "\ufeff" + text, text.replace("42", "NaN", 1)):
        if payload != text:
            assert signing.judge(signing.sign_as_it_is(payload.encode())).valid is False


def test_without_statements_or_of_others_nothing_is_proven(signing: Signing) -> None:
    assert signing.judge() == Proof("nothing: no statement is attached to this image", valid=False)
    found = signing.judge(signing.of(timedelta(hours=1), key="other"))
    assert found.valid is False
    assert "is not signed by the key" in found.text
    assert judge(Checkout(signing.root), signing.locked, DIGEST, [], None).valid is None
    assert TEST_RESULT in statement(signing.report, "tiny", DIGEST).decode()


def test_without_a_proof_a_verification_fails() -> None:
    assert Verification("x", "y", "z", "0").passed
    assert Verification("x", "y", "z", "0", proven=True).passed
    assert not Verification("x", "y", "z", "0", proven=False).passed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--key", "nowhere.pub"], "nowhere.pub: key not found"),
        (["--key", ""], ".: key not found"),
        (["--identity", ""], "expected a trusted key, or an identity and its issuer, found an empty one"),
        (["--identity", "https://example.com", "--issuer", ""], "expected a trusted key, or an identity and its issuer, found"),
        (["--key", "nowhere.pub", "--identity", "x"], "expected --key or --identity, found both"),
    ],
)
def test_a_signer_that_cannot_be_trusted_is_refused_before_anything_is_read(root: Path, options: list[str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "smokehouse", "verify", "oci:nowhere", *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
