"""Images are read from layouts and registries, and hostile ones are refused in one line."""

import shutil
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.oci import Layout, Reference, Registry
from smokehouse.oci.model import EMPTY, MANIFEST, Manifest, encode

from ..registries import BIG, Proxy, push_image
from ..tiny_images import image, tree


def test_damage_is_reported(tmp_path: Path) -> None:
    image(tmp_path / "b", [{"a": b""}], diff_ids=[f"sha256:{'0' * 64}"] * 2)
    with pytest.raises(UserError, match="expected 1 layers in its config, as in its manifest, found 2"):
        Layout(tmp_path / "b").image()
    layout = Layout(tmp_path / "d")
    image(layout.folder, [{"a": b""}])
    [layer] = layout.image().manifest.layers
    layout.blob(layer.digest).write_bytes(b"other")
    with pytest.raises(UserError, match=rf"{layer.digest.removeprefix('sha256:')}: does not match its digest"):
        layout.verify_blob(layer)
    layout.blob(layer.digest).unlink()
    with pytest.raises(UserError, match=rf"blob {layer.digest} not found"):
        layout.verify_blob(layer)
    for text in ("[]", "{", ""):
        (layout.folder / "index.json").write_text(text)
        with pytest.raises(UserError, match=r"index\.json: invalid OCI document \(document: "):
            layout.image()
    shutil.rmtree(layout.folder)
    with pytest.raises(UserError, match=r"not an OCI layout, index\.json not found"):
        layout.image()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ghcr.io/owner/name:tag", "ghcr.io/owner/name:tag"),
        ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
        ("localhost/a", "localhost/a"),
        ("debian:12", "docker.io/library/debian:12"),
        ("owner/name", "docker.io/owner/name"),
        (f"ghcr.io/a/b@sha256:{'a' * 64}", f"ghcr.io/a/b@sha256:{'a' * 64}"),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, name: str) -> None:
    assert str(Reference.parse(text)) == name


@pytest.mark.parametrize("text", ["", "a b", "ghcr.io/", "ghcr.io/a:", "ghcr.io/a@sha256:0", "ghcr.io/../a", "-x"])
def test_an_invalid_reference_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not an image reference; expected oci:DIR"):
        Reference.parse(text)


def test_what_is_pushed_is_pulled(registry: Proxy, tmp_path: Path) -> None:
    reference, made = push_image(registry.host, tmp_path / "a", "round/trip")
    layout = Layout(tmp_path / "b")
    assert Registry(reference).pull(layout).digest == made.digest
    assert tree(layout.image()).keys() == {"big", "small"}
    before = len(registry.received)
    Registry(reference).pull(layout)
    assert not [line for line, _ in registry.received[before:] if "GET" in line and "/blobs/" in line]
    with pytest.raises(UserError, match=r"round/trip:other: not found at 127\.0\.0\.1:\d+"):
        Registry(Reference.parse(f"{reference.name}:other")).pull(layout)


def test_an_interrupted_pull_resumes(registry: Proxy, tmp_path: Path) -> None:
    reference, made = push_image(registry.host, tmp_path / "a", "cut/pull")
    layer = Layout(tmp_path / "a").image().manifest.layers[0]
    registry.faults.cut_down[f"GET .*{layer.digest}"] = 300_000
    assert Registry(reference).pull(Layout(tmp_path / "b")).digest == made.digest
    ranges = [headers.get("Range") for line, headers in registry.received if line.startswith("GET") and layer.digest in line]
    assert ranges[0] is None
    assert str(ranges[1]).startswith("bytes=")


def test_a_blob_with_another_hash_is_refused(registry: Proxy, tmp_path: Path) -> None:
    reference, made = push_image(registry.host, tmp_path / "a", "lying/blob")
    image_there = Layout(tmp_path / "a").image()
    layer = image_there.manifest.layers[1]
    registry.faults.lies.add(f"/blobs/{layer.digest}")
    layout = Layout(tmp_path / "b")
    with pytest.raises(
        UserError, match=f"{layer.digest[7:]}: SHA-256 mismatch, {registry.host} serves another file than the lock specifies"
    ):
        Registry(reference).pull(layout)
    assert not (layout.folder / "index.json").exists()
    registry.faults.lies = {"/manifests/"}
    with pytest.raises(
        UserError, match=rf"expected {made.digest}, .* serves sha256:[0-9a-f]{{64}}; do not trust this registry"
    ):
        Registry(Reference.parse(f"{reference.name}@{made.digest}")).pull(layout)
    registry.faults.lies.clear()
    assert Registry(reference).pull(layout).digest == made.digest


def test_an_interrupted_push_is_reported_and_a_second_call_completes_it(registry: Proxy, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    image(tmp_path, [{"big": BIG}], kind="")
    [layer] = layout.image().manifest.layers
    registry.faults.cut_up["PUT /v2/cut/push/blobs/uploads/"] = 200_000
    there = Registry(Reference.parse(f"{registry.host}/cut/push"), push=True)
    with pytest.raises(UserError, match=rf"connection lost while sending {layer.digest} .*; run it again"):
        there.upload(layout.blob(layer.digest), layer)
    assert not there.has(layer)
    there.upload(layout.blob(layer.digest), layer)
    assert there.has(layer)


def test_a_registry_without_the_referrers_api_gets_a_referrers_tag(registry: Proxy, tmp_path: Path) -> None:
    reference, made = push_image(registry.host, tmp_path / "a", "refer/red")
    there = Registry(reference, push=True)
    assert there.referrers(made.digest) == ()
    layout = Layout(tmp_path / "b")
    empty = layout.put(b"{}", EMPTY)
    there.upload(layout.blob(empty.digest), empty)
    found = []
    for kind in ("application/a", "application/b"):
        manifest = Manifest(
            schema_version=2,
            artifact_type=kind,
            config=empty,
            layers=(empty,),
            subject=made,
        )
        data = encode(manifest)
        assert not there.put(data, MANIFEST)  # Debian's registry has no referrers API
        artefact = layout.put(data, MANIFEST).model_copy(update={"artifact_type": kind})
        for _ in range(2):
            there.add_referrer(artefact, made.digest)
        found.append(artefact)
    assert there.referrers(made.digest) == tuple(found)
