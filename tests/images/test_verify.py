"""Whether an image is what its lock builds is told file by file, and each way that it can be another is named."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smokehouse.oci import CONFIG, MANIFEST, Layout, document

from ..builder.conftest import TestHouse
from .conftest import Made
from .engine import Engine
from .images import FOLDER, Contents, Member, digest, link, packed, tar
from .real import run

SITE = "opt/env/lib/python3.11/site-packages"


def verified(house: TestHouse, reference: str, *options: str, code: int = 0) -> dict[str, Any]:
    """The verdict over an image, with the exit code `code`."""
    found: dict[str, Any] = json.loads(run(house, "verify", reference, "--json", *options, code=code).stdout)
    return found


def altered(
    made: Made, folder: Path, layer: Contents | None = None, edit: Callable[[dict[str, Any]], None] | None = None
) -> str:
    """The image with one more layer and an edited config, as an argument of verify."""
    shutil.copytree(made.layout, folder, copy_function=lambda source, target: Path(target).hardlink_to(source))
    layout = Layout(folder)
    image = layout.image()
    manifest = json.loads(layout.read(image.descriptor))
    config = json.loads(layout.read(image.manifest.config))
    if layer is not None:
        stream = tar(layer)
        blob = layout.put(packed(stream, "zstd"), "application/vnd.oci.image.layer.v1.tar+zstd")
        manifest["layers"].append(blob.model_dump(by_alias=True, exclude_none=True))
        config["rootfs"]["diff_ids"].append(digest(stream))
    if edit:
        edit(config)
    manifest["config"] = layout.put(json.dumps(config).encode(), CONFIG).model_dump(by_alias=True, exclude_none=True)
    (folder / "index.json").unlink()
    layout.name(layout.put(document(manifest), MANIFEST))
    return f"oci:{folder}"


def test_what_a_real_engine_builds_is_what_the_lock_says(made: Made, engine: Engine) -> None:
    verdict = verified(made.house, f"oci:{made.layout}")
    assert verdict["differences"] == []
    assert verdict["passed"]
    assert verdict["digest"] == Layout(made.layout).image().digest
    assert verdict["uncompared"] == []
    assert {"the conda half", "wheels", "this checkout", "its source, compiled"} < verdict["files"].keys()
    said = run(made.house, "verify", f"oci:{made.layout}").stdout
    assert said.splitlines()[-1] == "VERIFIED  this is what the lock builds"
    assert "134 packages of docker/base.lock" in said or "packages of docker/base.lock, made again here" in said


@pytest.mark.parametrize(
    ("layer", "path", "problem"),
    [
        ({f"{SITE}/alpha.py": b"print('evil')\n"}, f"{SITE}/alpha.py", "differs from that of alpha-1.0-py3-none-any.whl"),
        ({f"{SITE}/evil.py": b""}, f"{SITE}/evil.py", "of no artefact of the lock, and not ours"),
        ({f"{SITE}/evil.pth": b"import evil\n"}, f"{SITE}/evil.pth", "of no artefact of the lock, and not ours"),
        ({f"{SITE}/.wh.beta.py": b""}, f"{SITE}/beta.py", "of beta-2.0-py3-none-any.whl, and not in the image"),
        (
            {f"{SITE}/__pycache__/alpha.cpython-311.pyc": b"\xa7\r\r\n\1\0\0\0evilcode"},
            f"{SITE}/__pycache__/alpha.cpython-311.pyc",
            "differs from that of its source, compiled",
        ),
        ({"opt/env/etc/libtiny.conf": b"prefix=/evil\n"}, "opt/env/etc/libtiny.conf", "differs from that of the conda half"),
        ({"opt/env/bin/alpha": Member(b"#!/bin/sh\n", 0o755)}, "opt/env/bin/alpha", "differs from that of alpha-1.0"),
        ({"opt/env/bin/python3": link("/bin/sh")}, "opt/env/bin/python3", "differs from that of the conda half"),
        ({f"{SITE}/gamma-1.5.dist-info/RECORD": b""}, f"{SITE}/gamma-1.5.dist-info/RECORD", "differs from that of gamma-1.5"),
        (
            {"opt/smokehouse/doctor": Member(b"#!/bin/sh\n", 0o755)},
            "opt/smokehouse/doctor",
            "differs from that of this checkout",
        ),
        ({"opt/smokehouse/files.json": b"{}"}, "opt/smokehouse/files.json", "no list of what was made in the build"),
        ({"etc/passwd": b"evil::0:0::/:/bin/sh\n"}, "etc/passwd", "of the base, and replaced by a layer above it"),
        ({"etc/.wh.passwd": b""}, "etc/passwd", "of the base, and taken away by a layer above it"),
        ({"etc/ld.so.preload": b"/evil.so\n"}, "etc/ld.so.preload", "of no artefact of the lock, and not ours"),
        ({"srv/empty": FOLDER}, "srv/empty", "a folder of no artefact of the lock"),
        ({"opt/env/bin": Member(type=tarfile.DIRTYPE, mode=0o777)}, "opt/env/bin", "a folder of mode 777, not 755"),
    ],
    ids=lambda given: None if isinstance(given, dict) else str(given)[-24:],
)
def test_a_file_that_is_another_is_named(made: Made, tmp_path: Path, layer: Contents, path: str, problem: str) -> None:
    reference = altered(made, tmp_path / "layout", layer)
    verdict = verified(made.house, reference, code=1)
    assert not verdict["passed"]
    found = [entry for entry in verdict["differences"] if entry["path"] == path]
    assert [entry["problem"][: len(problem)] for entry in found] == [problem]
    layers = len(Layout(tmp_path / "layout").image().manifest.layers)
    assert found[0]["layer"] == (0 if "taken away" in problem or "not in the image" in problem else layers)
    ended = run(made.house, "verify", reference, code=1)
    assert path in ended.stdout.splitlines()[0]
    assert ended.stdout.splitlines()[-1] == "DIFFERENT  this is not what the lock builds"


def test_right_bytes_with_the_wrong_rights_are_named(made: Made, tmp_path: Path) -> None:
    text = (made.house.root / "lockfiles" / "tiny" / "lock.json").read_bytes()
    place = "opt/smokehouse/lock/lock.json"
    reference = altered(made, tmp_path / "layout", {place: Member(text, 0o4755)})
    assert {"layer", "path", "problem"} == verified(made.house, reference, code=1)["differences"][0].keys()
    found = {entry["path"]: entry["problem"] for entry in verified(made.house, reference, code=1)["differences"]}
    assert found == {place: "of mode 4755, this checkout has 644"}


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (lambda config: config["config"]["Env"].append("LD_PRELOAD=/evil.so"), "(config) ENV LD_PRELOAD"),
        (lambda config: config["config"].update(Entrypoint=["/bin/sh"]), "(config) ENTRYPOINT"),
        (lambda config: config["config"].update(User="nobody"), "(config) USER"),
        (lambda config: config["config"]["Labels"].update({"io.smokehouse.cuda": "13.0"}), "(config) label io.smokehouse.cuda"),
    ],
    ids=["environment", "entrypoint", "user", "label"],
)
def test_a_config_that_is_another_is_named(
    made: Made, tmp_path: Path, edit: Callable[[dict[str, Any]], None], path: str
) -> None:
    verdict = verified(made.house, altered(made, tmp_path / "layout", edit=edit), code=1)
    assert [entry["path"] for entry in verdict["differences"]] == [path]


def test_an_image_of_another_lock_or_of_none_is_refused(made: Made, tmp_path: Path) -> None:
    def other(config: dict[str, Any]) -> None:
        config["config"]["Labels"].update({"io.smokehouse.lock": "0" * 64, "org.opencontainers.image.revision": "a" * 40})

    said = run(made.house, "verify", altered(made, tmp_path / "one", edit=other), code=2).stderr
    assert f"of another lock of tiny than the one here ({made.lock[:12]}); git checkout {'a' * 40}" in said
    reference = altered(made, tmp_path / "two", edit=lambda config: config["config"].update(Labels={}))
    assert "no image of Smokehouse, by its labels" in run(made.house, "verify", reference, code=2).stderr
    assert "no OCI layout" in run(made.house, "verify", f"oci:{tmp_path}", code=2).stderr
    assert "cannot be reached" in run(made.house, "verify", "127.0.0.1:1/no/body:here", code=2).stderr
