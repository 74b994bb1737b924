"""What is said of where an image comes from, and what is in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from smokehouse import __version__
from smokehouse.checkout import Checkout
from smokehouse.images.labels import ImageLabels
from smokehouse.locks import LockedEnvironment, load
from smokehouse.proofs import provenance
from smokehouse.proofs.provenance import CYCLONEDX, PROVENANCE, SPDX, Workflow
from smokehouse.storage import files

NAME = "qwen2.5-vl"
DIGEST = f"sha256:{'d' * 64}"
ACTIONS = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_WORKFLOW_REF": "owner/house/.github/workflows/release.yml@refs/tags/v1",
    "GITHUB_REPOSITORY": "owner/house",
    "GITHUB_RUN_ID": "7",
    "GITHUB_RUN_ATTEMPT": "2",
}


@pytest.fixture(scope="module")
def locked(root: Path) -> LockedEnvironment:
    return load(Checkout(root), NAME)


def labels(locked: LockedEnvironment, **changes: Any) -> ImageLabels:
    """The labels of an image."""
    made: dict[str, Any] = {
        "environment": NAME,
        "flavour": "runtime",
        "lock": locked.digest,
        "ops": "none",
        "stack": {},
        "version": "1",
        "created": "2025-03-15T00:00:00Z",
        "base_name": "debian-bookworm",
        "base_digest": f"sha256:{'b' * 64}",
        **changes,
    }
    return ImageLabels(**made)


def test_provenance_has_what_was_requested_and_resolved(
    root: Path, locked: LockedEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "revision", lambda checkout, name: "a" * 40)  # this checkout may have edits
    wheel = f"https://example.org/flash.whl#sha256={'f' * 64}"
    about = labels(locked, source="https://github.com/owner/house", extra_wheels=(wheel,))
    found = provenance.provenance(Checkout(root), locked, about, Workflow.current(ACTIONS))
    definition = found["buildDefinition"]
    assert definition["externalParameters"] == {"environment": NAME, "flavour": "runtime", "ops": "none", "with": [wheel]}
    assert definition["internalParameters"] == {"smokehouse": __version__}
    resolved = {entry.get("name") or entry["uri"]: entry["digest"] for entry in definition["resolvedDependencies"]}
    folder = root / "lockfiles" / NAME
    for name in ("lock.json", *locked.lock.files):
        assert resolved[f"lockfiles/{NAME}/{name}"] == {"sha256": files.hashed(folder / name)}
    assert resolved["docker/base.lock"] == {"sha256": files.hashed(root / "docker" / "base.lock")}
    assert resolved["debian-bookworm"] == {"sha256": "b" * 64}
    assert resolved[f"git+https://github.com/owner/house@{'a' * 40}"] == {"gitCommit": "a" * 40}
    assert resolved["https://example.org/flash.whl"] == {"sha256": "f" * 64}
    run = found["runDetails"]
    assert run["builder"]["id"] == "https://github.com/owner/house/.github/workflows/release.yml@refs/tags/v1"
    assert run["metadata"]["invocationId"] == "https://github.com/owner/house/actions/runs/7/attempts/2"


def test_a_build_outside_a_workflow_claims_none(root: Path, locked: LockedEnvironment) -> None:
    assert Workflow.current({**ACTIONS, "GITHUB_ACTIONS": ""}) is None
    assert Workflow.current({"GITHUB_ACTIONS": "true"}) is None
    found = provenance.provenance(Checkout(root), locked, labels(locked, base_name="docker.io/library/debian:12"), None)
    assert found["runDetails"] == {"builder": {"id": provenance.LOCAL_BUILDER}}
    names = [entry.get("name") for entry in found["buildDefinition"]["resolvedDependencies"]]
    assert "docker/base.lock" not in names  # another base was not made of it


def test_each_statement_is_of_its_kind(root: Path, locked: LockedEnvironment, tmp_path: Path) -> None:
    sboms = {SPDX: tmp_path / "spdx", CYCLONEDX: tmp_path / "cdx"}
    for kind, place in sboms.items():
        place.write_text(json.dumps({"kind": kind}))
    made = provenance.statements(Checkout(root), locked, labels(locked), sboms, "ghcr.io/owner/name", DIGEST)
    found = {(content := json.loads(payload))["predicateType"]: content for payload in made}
    assert list(found) == [PROVENANCE, SPDX, CYCLONEDX]
    assert [found[kind]["predicate"] for kind in sboms] == [{"kind": SPDX}, {"kind": CYCLONEDX}]
    for content in found.values():
        assert content["subject"] == [{"name": "ghcr.io/owner/name", "digest": {"sha256": "d" * 64}}]
