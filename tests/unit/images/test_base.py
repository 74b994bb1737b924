"""A base is specified by its digest, and reaches buildx as a context by its digest."""

from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.images import base
from smokehouse.images.base import Base
from smokehouse.images.build import base_context
from smokehouse.images.debian_lock import DebianPackage, Definition

DIGEST = f"sha256:{'1' * 64}"


@pytest.mark.parametrize("name", ["debian", "docker.io/library/debian:bookworm", "127.0.0.1:5000/site/base:1.0"])
def test_a_base_in_a_registry_is_a_context_by_its_reference(name: str) -> None:
    found = base.parse(f"{name}@{DIGEST}")
    assert found == Base(name, DIGEST)
    assert base_context(found) == f"docker-image://{name}@{DIGEST}"


def test_a_base_that_was_built_here_is_a_context_by_its_layout_and_tag() -> None:
    built = Base("debian-bookworm", DIGEST, layout=Path("/a folder/layout"))
    assert base_context(built) == f"oci-layout:///a folder/layout:base@{DIGEST}"


@pytest.mark.parametrize("reference", ["debian:bookworm", "debian", "debian@sha256:123", f"oci-layout:///x@{DIGEST}"])
def test_a_base_without_its_digest_is_refused(reference: str) -> None:
    with pytest.raises(UserError) as refused:
        base.parse(reference)
    assert str(refused.value) == (
        f"--base: expected REF@sha256:…, found {reference}; specify the digest, because a tag can move"
    )


def test_a_package_that_dpkg_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdebstrap would say of the archive that it has "a section with no Package: header"."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "a_1_amd64.deb").write_bytes(b"")
    program = tmp_path / "dpkg-deb"
    program.write_text("#!/bin/sh\necho 'dpkg-deb: error: no space left' >&2; exit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    package = DebianPackage("a", "1", "0" * 64, 1, "pool/a_1_amd64.deb", "a", "1")
    definition = Definition(suite="bookworm", architecture="amd64", include={})
    with pytest.raises(UserError) as refused:
        base._debootstrap([package], definition, tmp_path, tmp_path / "tree")
    assert str(refused.value) == "a_1_amd64.deb: dpkg-deb cannot read it: dpkg-deb: error: no space left; try again"
