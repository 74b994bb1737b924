"""An image is compared with what its lock builds, by hash, and every difference is reported."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from smokehouse.oci.layout import Layout
from smokehouse.oci.model import CONFIG, MANIFEST, encode
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry

from ...unit.conftest import TestCheckout
from ..conftest import Baked, Made
from ..real import run
from ..registries import Proxy
from ..tiny_images import FOLDER, Contents, Member, digest, image, link, packed, tar

SITE = "opt/env/lib/python3.11/site-packages"


def verified(checkout: TestCheckout, reference: str, *options: str, code: int = 0) -> dict[str, Any]:
    """The verification of an image, with the exit code `code`."""
    found: dict[str, Any] = json.loads(run(checkout, "verify", reference, "--json", *options, code=code).stdout)
    return found


def altered(
    made: Made, folder: Path, layer: Contents | None = None, edit: Callable[[dict[str, Any]], None] | None = None
) -> str:
    """The image with one more layer and an edited config, as an argument of verify."""
    shutil.copytree(made.layout, folder, copy_function=lambda source, target: Path(target).hardlink_to(source))
    layout = Layout(folder)
    found = layout.image()
    manifest = json.loads(layout.read(found.descriptor))
    config = json.loads(layout.read(found.manifest.config))
    if layer is not None:
        stream = tar(layer)
        blob = layout.put(packed(stream, "zstd"), "application/vnd.oci.image.layer.v1.tar+zstd")
        manifest["layers"].append(blob.model_dump(by_alias=True, exclude_none=True))
        config["rootfs"]["diff_ids"].append(digest(stream))
    if edit:
        edit(config)
    manifest["config"] = layout.put(json.dumps(config).encode(), CONFIG).model_dump(by_alias=True, exclude_none=True)
    (folder / "index.json").unlink()
    layout.write_index(layout.put(encode(manifest), MANIFEST))
    return f"oci:{folder}"


def test_what_was_assembled_is_what_the_lock_says(made: Made) -> None:
    verdict = verified(made.checkout, f"oci:{made.layout}")
    assert verdict["differences"] == []
    assert verdict["passed"]
    image = Layout(made.layout).image()
    assert (verdict["digest"], verdict["id"]) == (image.digest, image.manifest.config.digest)
    assert tuple(layer["diff_id"] for layer in verdict["layers"]) == image.config.rootfs.diff_ids
    contents = [layer["content"] for layer in verdict["layers"]]
    assert contents[0].startswith("debian-")
    assert contents[1].startswith("conda packages (")
    assert (contents[2].split(", ")[0], contents[-1]) == ("alpha-1.0-py3-none-any.whl", "files of Smokehouse")
    said = run(made.checkout, "verify", f"oci:{made.layout}").stdout
    assert said.splitlines()[-1] == "VERIFIED  this is what the lock builds"
    assert "packages of docker/base.lock, built again here" in said
    assert f"layers   {len(contents)}, made again here from the lock and compared by hash\n" in said


def test_what_a_real_engine_builds_is_the_same_image(tiny: TestCheckout, baked: Baked) -> None:
    verdict = verified(tiny, f"oci:{baked.layout}")
    assert (verdict["passed"], verdict["differences"]) == (True, [])
    # As the engine has it, too.
    built = json.loads(run(tiny, "build", "tiny", "--json").stdout)
    verdict = verified(tiny, f"docker:{built['place']}")
    assert (verdict["passed"], verdict["id"], verdict["digest"]) == (True, built["id"], built["digest"])
    assert "image not found in the engine" in run(tiny, "verify", "docker:no-such-image", code=2).stderr


def test_each_file_of_another_layer_is_reported(made: Made, tmp_path: Path) -> None:
    layer: dict[str, Member | bytes] = {
        f"{SITE}/evil.pth": b"import evil\n",
        "etc/ld.so.preload": b"/evil.so\n",
        "opt/env/bin/python3": link("/bin/sh"),
        "srv/empty": FOLDER,
        "etc/.wh.shadow": b"",
    }
    reference = altered(made, tmp_path / "layout", layer)
    number = len(Layout(tmp_path / "layout").image().manifest.layers)
    found = [
        (entry["layer"], entry["path"], entry["problem"]) for entry in verified(made.checkout, reference, code=1)["differences"]
    ]
    assert (number, "(the whole layer)", "unexpected, the lock builds no such layer") in found
    assert [entry for entry in found if entry[0] == number][1:] == [
        (number, "etc/.wh.shadow", "unexpected file"),
        (number, "etc/ld.so.preload", "unexpected file"),
        (number, "opt/env/bin/python3", "unexpected link"),
        (number, f"{SITE}/evil.pth", "unexpected file"),
        (number, "srv/empty", "unexpected folder"),
    ]


def test_a_file_that_differs_is_named_with_its_layer(made: Made, tmp_path: Path) -> None:
    """An attacker packs a layer anew, with a file of another content, and renews every digest."""
    place = tmp_path / "layout"
    reference = altered(made, place, edit=lambda config: None)
    layout = Layout(place)
    found = layout.image()
    stream = zstandard.ZstdDecompressor().decompressobj().decompress(layout.blob(found.manifest.layers[2].digest).read_bytes())
    evil = stream.replace(b"def hello", b"def evil_")
    assert evil != stream
    manifest, config = (json.loads(layout.read(blob)) for blob in (found.descriptor, found.manifest.config))
    blob = layout.put(packed(evil, "zstd"), "application/vnd.oci.image.layer.v1.tar+zstd")
    manifest["layers"][2] = blob.model_dump(by_alias=True, exclude_none=True)
    config["rootfs"]["diff_ids"][2] = digest(evil)
    manifest["config"] = layout.put(json.dumps(config).encode(), CONFIG).model_dump(by_alias=True, exclude_none=True)
    layout.write_index(layout.put(encode(manifest), MANIFEST))
    ended = run(made.checkout, "verify", reference, code=1)
    assert re.search(rf"^layer 3: {SITE}/alpha\.py: expected SHA-256 \w+, found \w+$", ended.stdout, re.MULTILINE)
    assert ended.stdout.splitlines()[-1] == "DIFFERENT  this is not what the lock builds"


def test_a_config_that_differs_is_reported(made: Made, tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["config"]["Env"].append("LD_PRELOAD=/evil.so")
        config["config"].update(Entrypoint=["/bin/sh"], User="nobody", OnBuild=["RUN evil"])
        config["config"]["Labels"]["io.smokehouse.cuda"] = "13.0"

    verdict = verified(made.checkout, altered(made, tmp_path / "layout", edit=edit), code=1)
    found = {entry["path"]: entry["problem"] for entry in verdict["differences"]}
    assert found["(config) config.Entrypoint"].endswith('found ["/bin/sh"]')
    assert found["(config) config.Env"].endswith('"LD_PRELOAD=/evil.so"]') or "..." in found["(config) config.Env"]
    assert found["(config) config.User"] == 'unexpected, found "nobody"'
    assert found["(config) config.OnBuild"] == 'unexpected, found ["RUN evil"]'
    assert found["(config) config.Labels.io.smokehouse.cuda"] == 'expected "12.4", found "13.0"'


def labelled(made: Made, place: Path, labels: dict[str, str]) -> str:
    """The image as a build with these labels writes it."""
    found = Layout(made.layout).image()
    text = Layout(made.layout).read(found.manifest.config).decode()
    config = json.loads(text)
    old = json.dumps(config["config"]["Labels"], separators=(",", ":"))
    new = json.dumps(dict(sorted((config["config"]["Labels"] | labels).items())), separators=(",", ":"))
    assert old in text
    reference = altered(made, place, edit=lambda config: None)
    layout = Layout(place)
    manifest = json.loads(layout.read(layout.image().descriptor))
    manifest["config"] = layout.put(text.replace(old, new).encode(), CONFIG).model_dump(by_alias=True, exclude_none=True)
    layout.write_index(layout.put(encode(manifest), MANIFEST))
    return reference


def test_the_source_is_a_claim_or_compared(made: Made, tmp_path: Path) -> None:
    reference = labelled(made, tmp_path / "layout", {"org.opencontainers.image.source": "https://example.org/x"})
    said = run(made.checkout, "verify", reference).stdout
    assert "claim    source https://example.org/x, as the image says; specify the URL with --source\n" in said
    assert "claim    source" not in run(made.checkout, "verify", reference, "--source", "https://example.org/x").stdout
    [difference] = verified(made.checkout, reference, "--source", "https://example.org/y", code=1)["differences"]
    assert difference["problem"] == "expected https://example.org/y, found https://example.org/x"


def test_a_recorded_image_is_verified_from_git_alone(made: Made, tmp_path: Path) -> None:
    """`build --record` writes a line to compare with; `verify --quick` then needs no package, no base and no program."""
    clone = TestCheckout(tmp_path / "clone", made.checkout.environ | {"PATH": "/usr/bin:/bin"}, made.checkout.server)
    reference = f"oci:{made.layout}"
    parts = [path for path in made.checkout.root.iterdir() if path.name != "build"]
    try:
        unwritten = run(made.checkout, "verify", reference, "--quick", code=2).stderr
        assert "lockfiles/tiny/image.json: expected image.json with the runtime image of this lock, found none; " in unwritten
        assert "make it with smokehouse build tiny --record" in unwritten
        recorded = json.loads(run(made.checkout, "build", "tiny", "--record", "--json").stdout)
        clone.root.mkdir()
        for path in parts:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, clone.root / path.name)
    finally:
        (made.checkout.root / "lockfiles" / "tiny" / "image.json").unlink(missing_ok=True)
    image = Layout(made.layout).image()
    content = json.loads((clone.root / "lockfiles" / "tiny" / "image.json").read_text())["flavours"]["runtime"]
    assert content["id"] == recorded["id"] == image.manifest.config.digest
    assert content["digest"] == recorded["digest"] == image.digest
    assert tuple(layer["diff_id"] for layer in content["layers"]) == image.config.rootfs.diff_ids
    verdict = verified(clone, reference, "--quick")
    assert (verdict["passed"], verdict["method"], verdict["claims"], verdict["sbom"]) == (True, "recorded", [], "")
    assert {path.name for path in (clone.root / "build").iterdir()} == {"verify"}  # no bundle, no base, no layers
    said = run(clone, "verify", reference, "--quick").stdout
    assert "taken from image.json, not made again, and compared by hash\n" in said
    assert said.splitlines()[-1] == "VERIFIED  this is what image.json records for the lock"
    evil: dict[str, Member | bytes] = {f"{SITE}/evil.pth": b"import evil\n"}
    for number, doctored in enumerate(
        (
            altered(made, tmp_path / "0", evil),
            altered(made, tmp_path / "1", edit=lambda config: config["config"].update(User="0:0")),
            labelled(made, tmp_path / "2", {"org.opencontainers.image.revision": "a" * 40}),
        )
    ):
        assert verified(clone, doctored, "--quick", code=1)["differences"] != [], number
    source = labelled(made, tmp_path / "3", {"org.opencontainers.image.source": "https://example.org/x"})
    assert len(verified(clone, source, "--quick")["claims"]) == 1
    assert verified(clone, source, "--quick", "--source", "https://example.org/y", code=1)["differences"] != []
    (clone.root / "docker" / "inside" / "describe").write_text("#!/bin/sh\n")
    [claim] = verified(clone, reference, "--quick")["claims"]
    assert "other files of Smokehouse than this checkout has" in claim
    assert "--quick: expected no --bundle" in run(clone, "verify", reference, "--quick", "--bundle", "x", code=2).stderr
    assert (
        "--record: expected an image of the lock alone and no output, found --output; "
        in run(clone, "build", "tiny", "--record", "--output", "docker", code=2).stderr
    )


def test_a_base_can_be_named_where_nothing_builds_one(made: Made, tmp_path: Path) -> None:
    """The image's own layer is what the steps run on, if it has the digest; all that is above it is compared as always."""
    trusted = TestCheckout(made.checkout.root, made.checkout.environ | {"PATH": "/usr/bin:/bin"}, made.checkout.server)
    labels = Layout(made.layout).image().labels
    named = f"{labels['org.opencontainers.image.base.name']}@{labels['org.opencontainers.image.base.digest']}"
    verdict = verified(trusted, f"oci:{made.layout}", "--base", named)
    assert verdict["passed"]
    assert verdict["base"] == f"{named}, which is the lowest layer of the image, by its digest in --base"
    assert verdict["layers"][0]["diff_id"] == Layout(made.layout).image().config.rootfs.diff_ids[0]
    reference = altered(made, tmp_path / "layout", {f"{SITE}/evil.pth": b"import evil\n"})
    differences = verified(trusted, reference, "--base", named, code=1)["differences"]
    assert f"{SITE}/evil.pth" in {entry["path"] for entry in differences}


def test_an_image_of_another_lock_or_without_one_is_refused(made: Made, tmp_path: Path) -> None:
    def other(config: dict[str, Any]) -> None:
        config["config"]["Labels"].update({"io.smokehouse.lock": "0" * 64})

    said = run(made.checkout, "verify", altered(made, tmp_path / "one", edit=other), code=2).stderr
    assert f"expected an image of the lock of tiny in this checkout ({made.lock[:12]}), " in said
    assert f"found one of another lock ({'0' * 12}); check out the commit" in said
    reference = altered(made, tmp_path / "two", edit=lambda config: config["config"].update(Labels={}))
    assert ": not an image of Smokehouse" in run(made.checkout, "verify", reference, code=2).stderr
    assert "not an OCI layout" in run(made.checkout, "verify", f"oci:{tmp_path}", code=2).stderr
    assert "cannot be reached" in run(made.checkout, "verify", "127.0.0.1:1/no/body:here", code=2).stderr


def test_a_base_from_a_registry_is_allowed_by_its_digest(made: Made, registry: Proxy, tmp_path: Path) -> None:
    [place] = (made.checkout.root / "build" / "base").glob("*/layout")
    layout = Layout(place)
    base = layout.image()
    there = Registry(Reference.parse(f"{registry.host}/some/base"), push=True)
    for blob in base.blobs:
        there.upload(layout.blob(blob.digest), blob)
    there.put(layout.read(base.descriptor), base.descriptor.media_type)
    other = image(tmp_path / "other", [{"other": b""}])
    layout = Layout(tmp_path / "other")
    for blob in layout.image().blobs:
        there.upload(layout.blob(blob.digest), blob)
    there.put(layout.read(other), other.media_type)

    def claim(digest: str) -> Callable[[dict[str, Any]], None]:
        named = {"name": f"{registry.host}/some/base", "digest": digest}
        labels = {f"org.opencontainers.image.base.{key}": text for key, text in named.items()}
        return lambda config: config["config"]["Labels"].update(labels)

    one, named = altered(made, tmp_path / "one", edit=claim(base.digest)), f"{registry.host}/some/base@{base.digest}"
    [difference] = verified(made.checkout, one, code=1)["differences"]
    assert difference["problem"].endswith(f"found {named}; if you trust that base, allow it with --base {named}")
    verdict = verified(made.checkout, one, "--base", named, code=1)
    assert verdict["base"] == f"{named}, trusted by its digest in --base"
    # The packages of a base from a registry are unknown, so the SBOM lists none of them.
    assert "opt/smokehouse/sbom.spdx.json" in {entry["path"] for entry in verdict["differences"]}
    two, named = altered(made, tmp_path / "two", edit=claim(other.digest)), f"{registry.host}/some/base@{other.digest}"
    verdict = verified(made.checkout, two, "--base", named, code=1)
    problem = f"differs from that of the base {registry.host}/some/base"
    assert verdict["differences"] == [{"layer": 1, "path": "(the whole layer)", "problem": problem}]
    named = f"sha256:{'0' * 64}"
    three = altered(made, tmp_path / "three", edit=claim(named))
    said = run(made.checkout, "verify", three, "--base", f"{registry.host}/some/base@{named}", code=2).stderr
    assert f"some/base@sha256:{'0' * 64}: not found at {registry.host}" in said
