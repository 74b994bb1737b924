"""The other options of a build: flavour, base, builder and output."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from smokehouse.checkout import Checkout
from smokehouse.images import base as bases
from smokehouse.oci.layout import Layout
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry

from ...unit.conftest import TestCheckout
from ..conftest import STRANGER, Baked, built, tags
from ..debian import unpack
from ..engine import Engine
from ..real import run
from ..tiny_images import FOLDER, Contents, Member, image, link, tree

SBOM = "opt/smokehouse/sbom.spdx.json"


def pushed(folder: Path, name: str) -> str:
    """Push the image in the layout `folder` as `name`; by its digest, as an argument of --base."""
    layout = Layout(folder)
    found = layout.image()
    there = Registry(Reference.parse(name), push=True)
    for blob in found.blobs:
        there.upload(layout.blob(blob.digest), blob)
    there.put(layout.read(found.descriptor), found.descriptor.media_type)
    return f"{name}@{found.digest}"


def on_debian(checkout: TestCheckout, folder: Path, layer: Contents) -> Path:
    """A layout of Debian with one more layer."""
    base = bases.make(Checkout(checkout.root))
    assert base.layout
    layout = Layout(base.layout)
    below = layout.image()
    image(folder, [*(gzip.decompress(layout.blob(blob.digest).read_bytes()) for blob in below.manifest.layers), layer])
    return folder


def test_compilers_and_the_toolkit_are_in_the_devel_flavour_only(tiny: TestCheckout, engine: Engine, tmp_path: Path) -> None:
    lock = json.loads(tiny.lock_json.read_text())
    devel = [entry["file"].removesuffix(".conda") for entry in lock["conda"] if entry["category"] == "devel"]
    assert {"cuda-nvcc", "gxx-tiny"} <= {name.rsplit("-", 2)[0] for name in devel}
    seen = {}
    for flavour in ("runtime", "devel"):
        layout = tmp_path / flavour
        made = built(tiny, "--flavour", flavour, "--output", f"oci:{layout}")
        assert made["labels"]["io.smokehouse.flavour"] == flavour
        seen[flavour] = Layout(layout).image()
        run(tiny, "verify", f"oci:{layout}")
    entries = {flavour: tree(found) for flavour, found in seen.items()}
    for flavour, found in seen.items():
        has = flavour == "devel"
        assert [f"opt/env/conda-meta/{name}.json" in entries[flavour] for name in devel] == [has] * len(devel)
        blob = found.layout.blob(found.manifest.layers[-1].digest).read_bytes()
        stream = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(blob))
        with tarfile.open(fileobj=stream) as tar:
            content = tar.extractfile(SBOM)
            assert content
            listed = {entry["packageFileName"] for entry in json.load(content)["packages"][1:]}
        assert {f"{name}.conda" in listed for name in devel} == {has}
    assert {"opt/env/bin/nvcc", "opt/env/bin/gxx-tiny"} <= entries["devel"].keys() - entries["runtime"].keys()
    before = tags(engine)
    name = str(built(tiny, "--flavour", "devel")["place"])
    assert engine.docker("run", "--rm", *STRANGER, name, "nvcc").stdout == "/opt/env\n"
    assert "Smokehouse tiny (devel)" in engine.docker("run", "--rm", *STRANGER, name).stdout
    added = [tag for tag in tags(engine) if tag not in before]
    assert len(added) == 2
    assert all(tag.endswith("-devel") for tag in added)
    engine.docker("rmi", "--force", *added)


def test_a_base_of_somebody_elses_is_built_on(tiny: TestCheckout, engine: Engine, registry_port: int, tmp_path: Path) -> None:
    site = on_debian(tiny, tmp_path / "site", {"etc/site": b"theirs\n"})
    base = pushed(site, f"127.0.0.1:{registry_port}/site/base")
    name = str(built(tiny, "--base", base)["place"])
    code = "import alpha; print(alpha.hello(), open('/etc/site').read(), end='')"
    assert engine.docker("run", "--rm", *STRANGER, name, "python", "-c", code).stdout == "hello theirs\n"
    verdict = json.loads(run(tiny, "verify", f"docker:{name}", "--base", base, "--json").stdout)
    assert verdict["base"] == f"{base}, trusted by its digest in --base"
    listed = json.loads(engine.docker("run", "--rm", *STRANGER, name, "cat", f"/{SBOM}").stdout)["packages"][1:]
    names = {entry["packageFileName"].rpartition(".")[2] for entry in listed}
    assert names == {"conda", "whl"}
    labels = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", name).stdout)
    assert "@".join(labels[f"org.opencontainers.image.base.{part}"] for part in ("name", "digest")) == base
    assert verdict["passed"]
    engine.docker("rmi", "--force", *tags(engine))


@pytest.mark.parametrize("lacks", ["shell", "glibc"])
def test_a_base_that_nothing_runs_on_is_refused(
    tiny: TestCheckout, programs: Path, registry_port: int, tmp_path: Path, lacks: str
) -> None:
    layer: dict[str, Member | bytes] = {"etc/site": b"theirs\n"}
    if lacks == "glibc":
        shell = unpack(("busybox-static/bookworm",), programs / "busybox").parent / "bin" / "busybox"
        layer |= {"bin": FOLDER, "bin/busybox": Member(shell.read_bytes(), 0o755)}
        layer |= {f"bin/{name}": link("busybox") for name in ("sh", "mkdir", "tar")}
    image(tmp_path / "base", [layer])
    base = pushed(tmp_path / "base", f"127.0.0.1:{registry_port}/{lacks}")
    said = f"cannot be built: the base image has no {lacks}; use one that has a shell, tar and glibc, such as Debian"
    assert tiny.refused("build", "tiny", "--base", base) == f"smokehouse: conda packages {said}"
    assert tiny.refused("build", "tiny", "--base", base, "--builder", "default") == f"smokehouse: tiny {said}"


def test_what_another_engine_built_is_then_in_this_one(
    tiny: TestCheckout, engine: Engine, elsewhere: Engine, baked: Baked
) -> None:
    brought = built(tiny, "--builder", "elsewhere")
    assert (brought["digest"], brought["id"]) == (baked.printed["digest"], baked.printed["id"])
    assert elsewhere.docker("images", "--quiet").stdout == ""
    said = engine.docker("run", "--rm", *STRANGER, brought["place"], "alpha").stdout
    assert said == "hello\n"
    assert len(tags(engine)) == 2
    engine.docker("rmi", "--force", *tags(engine))
    assert "nowhere" in tiny.refused("build", "tiny", "--builder", "nowhere")


def test_ops_that_nothing_compiles_are_refused(tiny: TestCheckout) -> None:
    refused = tiny.refused("build", "tiny", "--ops", "aot")
    assert "--ops aot: requires deepspeed as source distribution, and cuda-cuobjdump and cuda-nvcc in [conda] devel" in refused


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_what_is_pushed_has_the_digest_that_is_printed(
    tiny: TestCheckout, registry_port: int, tmp_path: Path, compression: str
) -> None:
    name = f"127.0.0.1:{registry_port}/tiny/{compression}:now"
    made = built(tiny, "--output", f"push:{name}", "--compression", compression)
    assert made["place"] == f"{name}@{made['digest']}"
    found = Registry(Reference.parse(name)).manifest("now")
    assert found
    assert found[1].digest == made["digest"]
    kinds = {layer["mediaType"] for layer in json.loads(found[0])["layers"]}
    assert kinds == {f"application/vnd.oci.image.layer.v1.tar+{compression}"}
    run(tiny, "verify", f"{name}@{made['digest']}")
    pulled = Layout(tmp_path / "pulled")
    assert Registry(Reference.parse(name)).pull(pulled).digest == made["digest"]
    assert pulled.image().manifest.config.digest == made["id"] == built(tiny, "--output", f"oci:{tmp_path / 'here'}")["id"]
    tree(pulled.image())
    refused = tiny.refused("build", "tiny", "--output", f"push:{name}@{made['digest']}")
    assert "--output: expected push:HOST/NAME:TAG, found" in refused
