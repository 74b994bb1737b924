"""Images are read from layouts and registries, and hostile ones are refused in one line."""

import shutil
import tarfile
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.oci import Layout, Reference, Registry, Tree
from smokehouse.oci.filesystem import Limits
from smokehouse.oci.model import EMPTY, MANIFEST, Manifest, encode

from ..registries import BIG, Proxy, push_image
from ..tiny_images import FOLDER, Contents, Member, image, link, tar, tree


def read(folder: Path, limits: Limits | None = None) -> Tree:
    return tree(Layout(folder).image(), limits)


def refused(folder: Path, layers: list[Contents | bytes], **more: object) -> str:
    image(folder, layers, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError) as raised:
        read(folder)
    return str(raised.value)


@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_layers_are_applied_in_order(tmp_path: Path, kind: str) -> None:
    long = "d/" + "n" * 150
    bottom: Contents = {
        "./a": b"1",
        "d": FOLDER,
        "d/x": b"x",
        "d/y": b"y",
        "o": FOLDER,
        "o/old": b"",
        "keep": b"kept",
        long: b"l",
        "f": FOLDER,
        "f/inner": b"",
    }
    top: Contents = {
        "a": b"2",
        "d/.wh.x": b"",
        "o/.wh..wh..opq": b"",
        "o/new": b"n",
        "h": Member(type=tarfile.LNKTYPE, target="a"),
        "s": link("../../anywhere"),
        "f": b"now a file",
    }
    image(tmp_path, [bottom, top], kind=kind)
    found = read(tmp_path)
    assert {path for path, entry in found.entries.items() if entry.kind == "file"} == {
        "a",
        "d/y",
        "o/new",
        "keep",
        long,
        "h",
        "f",
    }
    assert found.entries["a"].sha256 == found.entries["h"].sha256
    assert found.entries["a"].layer == 1
    assert found.entries["s"].target == "../../anywhere"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ([("a/../../etc/passwd", b"")], "the path 'a/../../etc/passwd' is outside the image"),
        ([("dev/null", Member(type=tarfile.CHRTYPE, mode=0o666))], "dev/null is a device, pipe or sparse file"),
        ([("pipe", Member(type=tarfile.FIFOTYPE))], "pipe is a device, pipe or sparse file"),
        ([("d", link("/etc")), ("d/passwd", b"")], "d/passwd is below d, which is a link"),
        ([("d", b""), ("d/e/f", b"")], "d/e/f is below d, which is a file"),
        ([("h", Member(type=tarfile.LNKTYPE, target="nowhere"))], "h is a hard link to nowhere, which is not a file"),
        ([("h", Member(type=tarfile.LNKTYPE, target="../etc/shadow"))], "the path '../etc/shadow' is outside the image"),
        ([(".wh...", b"")], "invalid whiteout .wh..."),
    ],
    ids=["outside", "device", "pipe", "through a link", "below a file", "hard link", "hard link outside", "whiteout"],
)
def test_a_hostile_layer_is_refused(tmp_path: Path, contents: Contents, said: str) -> None:
    message = refused(tmp_path, [contents])
    assert message.startswith("layer 1: ")
    assert said in message
    assert "do not trust" in message


def test_a_decompression_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    image(tmp_path, [{"zeros": bytes(64 << 20)}])
    with pytest.raises(UserError, match="expected at most 8388608 bytes when unpacked, found more"):
        read(tmp_path, Limits(unpacked=8 << 20))
    image(tmp_path, [{f"f{number}": b"" for number in range(101)}])
    with pytest.raises(UserError, match="expected at most 100 entries, found more"):
        read(tmp_path, Limits(entries=100))
    comment = "x" * (2_000_000 - len("2000000 comment=\n"))
    assert "tar header: expected at most 1048576 bytes, found 2000000" in refused(
        tmp_path, [{"f": Member(headers={"comment": comment})}]
    )


def test_nothing_hides_behind_the_end(tmp_path: Path) -> None:
    hidden = tar({"a": b"1"}) + tar({"hidden": b"2"})
    assert "data after the end of the layer" in refused(tmp_path, [hidden])
    damaged = bytearray(tar([("a", b"1"), ("b", b"2")]))
    damaged[1024 + 148] ^= 1  # the checksum of the second header
    assert "an invalid header" in refused(tmp_path, [bytes(damaged)])


def test_damage_is_reported(tmp_path: Path) -> None:
    assert "expected 1 layers in its config, as in its manifest, found 2" in refused(
        tmp_path / "b", [{"a": b""}], diff_ids=[f"sha256:{'0' * 64}"] * 2
    )
    assert "invalid layer (" in refused(tmp_path / "c", [tar({"a": BIG})[:2000]])
    layout = Layout(tmp_path / "d")
    image(layout.folder, [{"a": b""}])
    [layer] = layout.image().manifest.layers
    layout.blob(layer.digest).write_bytes(b"other")
    with pytest.raises(UserError, match=rf"{layer.digest.removeprefix('sha256:')}: does not match its digest"):
        read(layout.folder)
    layout.blob(layer.digest).unlink()
    with pytest.raises(UserError, match=rf"blob {layer.digest} not found"):
        read(layout.folder)
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
    assert tree(layout.image()).entries.keys() == {"big", "small"}
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
