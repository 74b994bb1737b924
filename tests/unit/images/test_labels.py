"""The labels of an image are parsed as they are written, and an image without them is refused."""

from dataclasses import replace

import pytest

from smokehouse.errors import UserError
from smokehouse.images.labels import ImageLabels

LABELS = ImageLabels(
    environment="tiny",
    flavour="devel",
    lock="1" * 64,
    ops="aot",
    stack={"python": "3.11", "cuda": "12.4", "torch": "2.6.0"},
    version="cu124-torch2.6.0-111111111111-devel",
    created="2025-03-15T00:00:00Z",
    base_name="debian-bookworm",
    base_digest=f"sha256:{'2' * 64}",
)
WRITTEN = {
    "io.smokehouse.cuda": "12.4",
    "io.smokehouse.environment": "tiny",
    "io.smokehouse.flavour": "devel",
    "io.smokehouse.lock": "1" * 64,
    "io.smokehouse.ops": "aot",
    "io.smokehouse.python": "3.11",
    "io.smokehouse.torch": "2.6.0",
    "org.opencontainers.image.base.digest": f"sha256:{'2' * 64}",
    "org.opencontainers.image.base.name": "debian-bookworm",
    "org.opencontainers.image.created": "2025-03-15T00:00:00Z",
    "org.opencontainers.image.description": "tiny, devel: locked and proven by Smokehouse",
    "org.opencontainers.image.title": "tiny",
    "org.opencontainers.image.version": "cu124-torch2.6.0-111111111111-devel",
}


def test_labels_are_written_sorted_and_without_what_is_unknown() -> None:
    assert [*LABELS.as_dict().items()] == [*WRITTEN.items()]
    whole = replace(LABELS, extra_wheels=("a", "b"), source="https://example.org/checkout")
    assert whole.as_dict().items() - WRITTEN.items() == {
        ("io.smokehouse.with", "a b"),
        ("org.opencontainers.image.source", "https://example.org/checkout"),
    }
    for labels in (LABELS, whole):
        assert ImageLabels.parse(labels.as_dict() | {"org.example.other": "theirs"}, "IMAGE") == labels


def test_what_is_missing_is_empty_but_for_what_an_image_is_of() -> None:
    least = {f"io.smokehouse.{name}": WRITTEN[f"io.smokehouse.{name}"] for name in ("environment", "flavour", "ops")}
    found = ImageLabels.parse(least, "IMAGE")
    assert (found.environment, found.flavour, found.ops) == ("tiny", "devel", "aot")
    assert (found.lock, found.version, found.base_name, found.base_digest, found.source) == ("",) * 5
    assert (found.stack, found.extra_wheels) == ({}, ())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("environment", None, "expected the name of an environment, found none; use an image that smokehouse build made"),
        ("environment", "../tiny", "expected the name of an environment, found '../tiny'"),
        ("flavour", None, "expected runtime or devel, found none"),
        ("flavour", "other", "expected runtime or devel, found 'other'"),
        ("ops", "", "expected none or aot, found ''"),
    ],
)
def test_an_image_of_another_kind_is_refused(name: str, text: str | None, said: str) -> None:
    label = f"io.smokehouse.{name}"
    labels = {**WRITTEN, label: text or ""}
    if text is None:
        del labels[label]
    with pytest.raises(UserError) as refused:
        ImageLabels.parse(labels, "IMAGE")
    assert str(refused.value).startswith(f"IMAGE: not an image of Smokehouse: label {label}: {said}")
