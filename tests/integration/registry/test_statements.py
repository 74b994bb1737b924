"""Statements that are attached to an image are found and verified by cosign and oras, without Smokehouse."""

import json
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from smokehouse.oci import Layout, Registry
from smokehouse.proofs import signing
from smokehouse.proofs.attestation import TEST_RESULT
from smokehouse.proofs.provenance import CYCLONEDX, PROVENANCE, SPDX
from smokehouse.proofs.referrers import attach_statement, fetch_statements
from smokehouse.proofs.signing import BUNDLE, SignedStatement, Signer

from ..registries import Proxy, push_image

KINDS = (TEST_RESULT, PROVENANCE, SPDX, CYCLONEDX)


@pytest.fixture
def attached(registry: Proxy, keys: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Registry, str]:
    """A repository of the test's own and the digest of an image in it that has a signed statement of each kind."""
    name = request.node.name.replace("_", "-")
    reference, made = push_image(registry.host, tmp_path / "image", f"statements/{name}")
    there, layout = Registry(reference, push=True), Layout(tmp_path / "image")
    for number, kind in enumerate(KINDS):
        payload = signing.statement(kind, {"number": number}, reference.name, made.digest)
        attach_statement(there, layout, made, signing.sign(payload, Signer(keys / "ours.key")))
    return there, made.digest


def verify(cosign: Path, key: Path, image: str, kind: str) -> subprocess.CompletedProcess[str]:
    """Run cosign as policy controllers do."""
    command: list[str | Path] = [
        cosign / "cosign",
        "verify-attestation",
        "--key",
        key,
        "--type",
        kind,
        "--insecure-ignore-tlog=true",
    ]
    return subprocess.run([*command, "--insecure-ignore-tlog=true", image], capture_output=True, text=True, timeout=120)


def test_cosign_finds_and_verifies_each_statement(attached: tuple[Registry, str], cosign: Path, keys: Path) -> None:
    there, digest = attached
    image = f"{there.reference.name}@{digest}"
    for number, kind in enumerate(KINDS):
        ended = verify(cosign, keys / "ours.pub", image, kind)
        assert ended.returncode == 0, ended.stderr
        found = [json.loads(b64decode(json.loads(line)["payload"])) for line in ended.stdout.splitlines()]
        assert [(one["predicateType"], one["predicate"]) for one in found] == [(kind, {"number": number})]
    assert verify(cosign, keys / "other.pub", image, TEST_RESULT).returncode != 0
    assert verify(cosign, keys / "ours.pub", image, "https://slsa.dev/verification_summary/v1").returncode != 0


def test_oras_lists_the_statements_with_their_kinds(attached: tuple[Registry, str], oras: Path) -> None:
    there, digest = attached
    command: list[str | Path] = [oras, "discover", "--plain-http", "--format", "json", f"{there.reference.name}@{digest}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    listed: list[dict[str, Any]] = json.loads(ended.stdout)["referrers"]
    assert {entry["artifactType"] for entry in listed} == {BUNDLE}
    assert sorted(entry["annotations"]["dev.sigstore.bundle.predicateType"] for entry in listed) == sorted(KINDS)


def test_only_test_results_are_fetched_to_be_judged(attached: tuple[Registry, str], keys: Path, tmp_path: Path) -> None:
    there, digest = attached
    [found] = fetch_statements(there, digest, tmp_path)
    assert signing.open_signed(found, Signer(keys / "ours.pub"), digest)["predicateType"] == TEST_RESULT


def test_what_is_attached_with_a_false_label_is_judged_by_what_is_signed(
    attached: tuple[Registry, str], keys: Path, tmp_path: Path
) -> None:
    there, digest = attached
    payload = signing.statement(PROVENANCE, {}, there.reference.name, digest)
    signed = signing.sign(payload, Signer(keys / "ours.key"))
    layout = Layout(tmp_path / "image")
    subject = layout.image().descriptor
    attach_statement(there, layout, subject, SignedStatement(signed.bundle, TEST_RESULT))
    kinds = [
        signing.open_signed(found, Signer(keys / "ours.pub"), digest)["predicateType"]
        for found in fetch_statements(there, digest, tmp_path)
    ]
    assert kinds == [TEST_RESULT, PROVENANCE]
