"""References to images: as docker reads them, and what is said of others."""

import pytest

from smokehouse.errors import UserError
from smokehouse.oci.reference import Reference


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("ghcr.io/Owner/Image:V1", "ghcr.io/owner/image:V1"),
        ("GHCR.io/owner/Image", "ghcr.io/owner/image"),
        ("Image@sha256:" + "0" * 64, "image@sha256:" + "0" * 64),
        ("localhost:5000/My_Image:Latest", "localhost:5000/my_image:Latest"),
    ],
)
def test_capitals_are_named_and_the_remedy_is_accepted(text: str, remedy: str) -> None:
    with pytest.raises(UserError) as refusal:
        Reference.parse(text)
    assert str(refusal.value) == f"{text}: expected the name of an image in lower case, found capitals; write {remedy}"
    assert Reference.parse(remedy).repository.islower()


@pytest.mark.parametrize("text", ["ghcr.io/owner/Image name", "Image:", "-Image", "a/B/../c", "A" * 200 + "!", "x\nY"])
def test_capitals_are_not_named_where_more_is_wrong(text: str) -> None:
    with pytest.raises(UserError, match="not an image reference; expected oci:DIR"):
        Reference.parse(text)
