"""A base is specified by its digest, and reaches buildx as a context by its digest."""

from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.images import base
from smokehouse.images.base import Base
from smokehouse.images.build import base_context

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
