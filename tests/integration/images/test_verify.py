"""An image is compared with what its lock builds, file by file, and every difference is reported."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smokehouse.oci.layout import Layout
from smokehouse.oci.model import CONFIG, MANIFEST, encode
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry

from ...unit.conftest import TestCheckout
from ..conftest import Made
from ..real import run
from ..registries import Proxy
from ..tiny_images import FOLDER, Contents, Member, digest, image, link, packed, tar

SITE = "opt/env/lib/python3.11/site-packages"
LOADER = "smokehouse_loader-0.1.0-py3-none-any.whl"


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


def test_what_a_real_engine_builds_is_what_the_lock_says(made: Made) -> None:
    verdict = verified(made.checkout, f"oci:{made.layout}")
    assert verdict["differences"] == []
    assert verdict["passed"]
    assert verdict["digest"] == Layout(made.layout).image().digest
    assert verdict["uncompared"] == []
    assert {"the conda half", "wheels", "this checkout", "its source, compiled"} < verdict["files"].keys()
    said = run(made.checkout, "verify", f"oci:{made.layout}").stdout
    assert said.splitlines()[-1] == "VERIFIED  this is what the lock builds"
    assert "packages of docker/base.lock, built again here" in said


def test_each_file_that_differs_is_reported(made: Made, tmp_path: Path) -> None:
    lock = (made.checkout.root / "lockfiles" / "tiny" / "lock.json").read_bytes()
    pyc = f"{SITE}/__pycache__/alpha.cpython-311.pyc"
    changed: dict[str, tuple[Member | bytes, str]] = {
        f"{SITE}/alpha.py": (b"print('evil')\n", "differs from that of alpha-1.0-py3-none-any.whl"),
        f"{SITE}/evil.pth": (b"import evil\n", "unexpected file"),
        pyc: (b"\xa7\r\r\n\1\0\0\0evilcode", "differs from that of the compiled source"),
        "opt/env/etc/libtiny.conf": (b"prefix=/evil\n", "differs from that of the conda packages"),
        "opt/env/bin/alpha": (Member(b"#!/bin/sh\n", 0o755), "differs from that of alpha-1.0-py3-none-any.whl"),
        "opt/env/bin/python3": (link("/bin/sh"), "differs from that of the conda packages"),
        f"{SITE}/gamma-1.5.dist-info/RECORD": (b"", "differs from that of gamma-1.5-py3-none-any.whl"),
        f"{SITE}/smokehouse_loader/fit.py": (b"evil = True\n", f"differs from that of {LOADER}"),
        f"{SITE}/smokehouse_loader-0.1.0.dist-info/RECORD": (b"", f"differs from that of {LOADER}"),
        "opt/env/bin/smokehouse-loader": (Member(b"#!/bin/sh\n", 0o755), f"differs from that of {LOADER}"),
        "opt/smokehouse/doctor": (Member(b"#!/bin/sh\n", 0o755), "differs from that of this checkout"),
        "opt/smokehouse/lock/lock.json": (Member(lock, 0o4755), "expected mode 644 from this checkout, found 4755"),
        "etc/passwd": (b"evil::0:0::/:/bin/sh\n", "base file replaced by a later layer"),
        "etc/ld.so.preload": (b"/evil.so\n", "unexpected file"),
        "srv/empty": (FOLDER, "unexpected directory"),
        "opt/env/bin": (Member(type=tarfile.DIRTYPE, mode=0o777), "directory: expected mode 755, found 777"),
        "etc": (
            Member(type=tarfile.DIRTYPE, mode=0o777),
            "base directory changed: expected mode 755, owner 0:0, found mode 777, owner 0:0",
        ),
    }
    gone = {
        f"{SITE}/.wh.beta.py": (f"{SITE}/beta.py", "file of beta-2.0-py3-none-any.whl not found in the image"),
        f"{SITE}/smokehouse_loader/.wh.zero.py": (
            f"{SITE}/smokehouse_loader/zero.py",
            f"file of {LOADER} not found in the image",
        ),
        "etc/.wh.shadow": ("etc/shadow", "base file deleted by a later layer"),
    }
    layer: dict[str, Member | bytes] = {path: member for path, (member, _) in sorted(changed.items())}
    reference = altered(made, tmp_path / "layout", layer | dict.fromkeys(gone, b""))
    layers = len(Layout(tmp_path / "layout").image().manifest.layers)
    ended = run(made.checkout, "verify", reference, "--json", code=1)
    verdict = json.loads(ended.stdout)
    assert not verdict["passed"]
    found = [(entry["layer"], entry["path"], entry["problem"]) for entry in verdict["differences"]]
    wanted = [(layers, path, problem) for path, (_, problem) in changed.items()]
    assert found == sorted([*wanted, *((0, path, problem) for path, problem in gone.values())])


def test_the_first_difference_is_printed_and_ends_with_1(made: Made, tmp_path: Path) -> None:
    reference = altered(made, tmp_path / "layout", {"opt/smokehouse/files.json": b"{}"})
    lines = run(made.checkout, "verify", reference, code=1).stdout.splitlines()
    layers = len(Layout(tmp_path / "layout").image().manifest.layers)
    assert lines[0] == f"layer {layers}: opt/smokehouse/files.json: missing or invalid list of the files that the build made"
    assert lines[-1] == "DIFFERENT  this is not what the lock builds"


def test_a_config_that_differs_is_reported(made: Made, tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["config"]["Env"].append("LD_PRELOAD=/evil.so")
        config["config"].update(Entrypoint=["/bin/sh"], User="nobody")
        config["config"]["Labels"]["io.smokehouse.cuda"] = "13.0"

    verdict = verified(made.checkout, altered(made, tmp_path / "layout", edit=edit), code=1)
    entrypoint = ["/opt/smokehouse/tini", "--", "/opt/smokehouse/entrypoint"]
    assert [(entry["path"], entry["problem"]) for entry in verdict["differences"]] == [
        ("(config) ENTRYPOINT", f"expected {entrypoint} from docker/Dockerfile, found ['/bin/sh']"),
        ("(config) ENV LD_PRELOAD", "expected none from docker/Dockerfile and the base, found '/evil.so'"),
        ("(config) USER", "expected none from the base, found 'nobody'"),
        ("(config) label io.smokehouse.cuda", "expected '12.4' from the lock, found '13.0'"),
    ]


def test_an_image_of_another_lock_or_without_one_is_refused(made: Made, tmp_path: Path) -> None:
    def other(config: dict[str, Any]) -> None:
        config["config"]["Labels"].update({"io.smokehouse.lock": "0" * 64, "org.opencontainers.image.revision": "a" * 40})

    said = run(made.checkout, "verify", altered(made, tmp_path / "one", edit=other), code=2).stderr
    assert f"expected an image of the lock of tiny in this checkout ({made.lock[:12]}), " in said
    assert f"found one of another lock ({'0' * 12}); git checkout {'a' * 40}" in said
    reference = altered(made, tmp_path / "two", edit=lambda config: config["config"].update(Labels={}))
    assert ": not an image of Smokehouse" in run(made.checkout, "verify", reference, code=2).stderr
    assert "not an OCI layout" in run(made.checkout, "verify", f"oci:{tmp_path}", code=2).stderr
    assert "cannot be reached" in run(made.checkout, "verify", "127.0.0.1:1/no/body:here", code=2).stderr


def test_a_rebuild_compares_digests_and_names_the_first_difference(made: Made, tmp_path: Path) -> None:
    verdict = verified(made.checkout, f"oci:{made.layout}", "--rebuild")
    assert verdict["rebuilt"] == "the same digest"
    reference = altered(made, tmp_path / "layout", {f"{SITE}/alpha.py": b"print('evil')\n"})
    differences = verified(made.checkout, reference, "--rebuild", code=1)["differences"]
    layers = len(Layout(tmp_path / "layout").image().manifest.layers)
    assert (differences[0]["layer"], differences[0]["problem"]) == (layers, "found in only one of the images")


def test_an_image_in_an_engine_is_verified_as_it_is_there(made: Made) -> None:
    built = json.loads(run(made.checkout, "build", "tiny", "--json").stdout)
    verdict = verified(made.checkout, f"docker:{built['place']}")
    assert verdict["passed"]
    assert verdict["digest"] == built["digest"]
    assert "image not found in the engine" in run(made.checkout, "verify", "docker:no-such-image", code=2).stderr


def test_a_base_from_a_registry_is_trusted_by_its_digest(made: Made, registry: Proxy, tmp_path: Path) -> None:
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

    verdict = verified(made.checkout, altered(made, tmp_path / "one", edit=claim(base.digest)), code=1)
    assert verdict["base"] == f"{registry.host}/some/base@{base.digest}, trusted by its digest"
    # The packages of a base from a registry are unknown, so the SBOM lists none of them.
    assert [entry["path"] for entry in verdict["differences"]] == ["opt/smokehouse/sbom.spdx.json"]
    verdict = verified(made.checkout, altered(made, tmp_path / "two", edit=claim(other.digest)), code=1)
    problem = f"differs from that of the base {registry.host}/some/base"
    assert {"layer": 1, "path": "(the whole layer)", "problem": problem} in verdict["differences"]
    said = run(made.checkout, "verify", altered(made, tmp_path / "three", edit=claim(f"sha256:{'0' * 64}")), code=2).stderr
    assert "base not found in its registry" in said
