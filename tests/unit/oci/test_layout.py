"""The bytes of a layout that the builder writes: digests of images that are published depend on them."""

import gzip
import io
import tarfile
from pathlib import Path

from smokehouse.oci.layout import Layout, unpack_layout, write_layout
from smokehouse.storage import files

CONFIG = "sha256:51fcb5cbe290c2d150cbff33c611c3c19a61471150aed315ee5729b1e8227243"
LAYER = "sha256:9f48c4da4df8d9e85b8a52675b688b62108a4e85a21a8353573b240fae4fc951"
MANIFEST = "sha256:836d777021c2c8d56cdeb5171f226ce817c21f52114219036edb1169f3e0bf6f"
INDEX = "2b27c379d69d4040cf6b8a70426a7fe34b3a2ef56ece282efbf9ac3f06e475c4"


def write(folder: Path) -> Path:
    """Write a layer of one folder with one file, as mmdebstrap writes one."""
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as archive:
        etc = tarfile.TarInfo("./etc")
        etc.type, etc.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(etc)
        motd = tarfile.TarInfo("./etc/motd")
        motd.size = 6
        archive.addfile(motd, io.BytesIO(b"hello\n"))
    return layer


def test_a_layout_keeps_its_digests(tmp_path: Path) -> None:
    layer, folder = write(tmp_path), tmp_path / "layout"
    folder.mkdir()
    (folder / "stale").touch()
    write_layout(layer, folder, name="base", created="1980-01-01T00:00:00Z", created_by="mmdebstrap")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "index.json",
        "oci-layout",
        *(f"blobs/{digest.replace(':', '/')}" for digest in (CONFIG, LAYER, MANIFEST)),
    }
    assert files.hashed(folder / "index.json") == INDEX
    assert (folder / "oci-layout").read_text() == '{"imageLayoutVersion": "1.0.0"}'
    image = Layout(folder).image()
    assert (image.digest, image.manifest.config.digest, image.manifest.layers[0].digest) == (MANIFEST, CONFIG, LAYER)
    assert gzip.decompress(image.layout.blob(LAYER).read_bytes()) == layer.read_bytes()


def test_an_archive_has_all_files_of_a_layout_in_parts_that_can_be_sent(tmp_path: Path) -> None:
    layer, folder = write(tmp_path), tmp_path / "layout"
    write_layout(layer, folder, name="base", created="1980-01-01T00:00:00Z", created_by="mmdebstrap")
    for size in (0, 512, 513, (2 << 20) + 1):
        (folder / "blobs" / f"{size}").write_bytes(b"x" * size)
    parts = [*Layout(folder).archive()]
    assert 0 < min(map(len, parts)) <= max(map(len, parts)) <= 1 << 20  # an empty part would end a chunked request
    (tmp_path / "archive.tar").write_bytes(b"".join(parts))
    with tarfile.open(tmp_path / "archive.tar", "r:") as archive:
        found = {member.name: file.read() for member in archive if (file := archive.extractfile(member))}
    assert found == {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert unpack_layout(tmp_path / "archive.tar", tmp_path / "again").image().digest == MANIFEST
