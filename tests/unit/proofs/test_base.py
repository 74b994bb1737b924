"""The lowest layer of an image stands for a Debian base that --base names: unpacked within bounds, or refused in a line."""

from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.oci import Layout
from smokehouse.oci.model import MANIFEST, encode
from smokehouse.proofs import base

from ...integration.tiny_images import image, packed, tar

TAR = "application/vnd.oci.image.layer.v1.tar"


def lowest(folder: Path, data: bytes, kind: str) -> Path:
    """The layout of a base of the layer `data`, the only one of an image."""
    layout = Layout(folder / "image")
    made = layout.image() if (folder / "image").exists() else layout.open(image(folder / "image", [{"a": b"1"}]))
    layers = (layout.put(data, f"{TAR}{kind}"),)
    layout.write_index(layout.put(encode(made.manifest.model_copy(update={"layers": layers})), MANIFEST))
    (folder / "work").mkdir(exist_ok=True)
    return base._lowest_layer(layout.image(), "oci:x", folder / "work")


def test_the_lowest_layer_makes_the_base_that_it_was(tmp_path: Path) -> None:
    stream = tar({"etc/debian_version": b"12.1\n"})
    (tmp_path / "base.tar").write_bytes(stream)
    bases.write(tmp_path / "base.tar", tmp_path / "base")
    expected = Layout(tmp_path / "base").image().digest
    for kind in ("zstd", "gzip", ""):
        place = lowest(tmp_path, packed(stream, kind), f"+{kind}" if kind else "")
        assert Layout(place).image().digest == expected


@pytest.mark.parametrize("kind", ["+zstd", "+gzip"])
def test_a_lowest_layer_that_cannot_be_unpacked_is_refused(tmp_path: Path, kind: str) -> None:
    good = packed(tar({"a": b"1" * 10_000}), kind[1:])
    for data in (b"", b"evil", good[:-5], good + good, good[:40] + bytes(40) + good[80:]):
        with pytest.raises(UserError, match=r"^layer 1 of oci:x: expected one stream of tar\+"):
            lowest(tmp_path, data, kind)


def test_a_lowest_layer_is_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_MOST", 100_000)
    with pytest.raises(UserError, match=r"^oci:x: expected a base of at most .*, found more; do not trust this image$"):
        lowest(tmp_path, packed(bytes(1 << 20), "zstd"), "+zstd")
    assert (tmp_path / "work" / "base.tar").stat().st_size <= 100_000
