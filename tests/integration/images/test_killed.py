"""`build` and `publish` that are killed anywhere, as by `kill -9`: nothing half-made is used, a second call completes it."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from smokehouse.oci.layout import Layout
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry

from ...unit import test_killed as killed
from ...unit.test_killed import Killer, kill_everywhere
from ..conftest import Made
from .test_publish import Publisher, publisher
from .test_verify import verified

__all__ = ["publisher"]

Record = Callable[[str, object], None]


def test_killed_build(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    """Its layers are made again each time but that of the base, which takes the longest."""
    record_property("fault", "kill -9")
    monkeypatch.setattr(killed, "SAMPLED", (0.5, 1.0))
    layout, layers = tmp_path / "place" / "layout", made.checkout.root / "build" / "layers"
    expected = Layout(made.layout).image()

    def remove() -> None:
        shutil.rmtree(layout.parent, ignore_errors=True)
        layout.parent.mkdir()
        for folder in layers.iterdir():
            if (folder / "tree" / "opt").exists():
                shutil.rmtree(folder)

    def check() -> object:
        found = Layout(layout).only_image()
        for blob in found.blobs:
            found.layout.verify_blob(blob)
        assert found.digest == expected.digest
        assert [path.name for path in layout.parent.iterdir()] == ["layout"]
        left = [path for path in layers.glob("*/*") if path.name.endswith("partial") or path.name.startswith("tmp")]
        return found.digest, [path for path in left if path.is_dir()]

    command = ["build", "tiny", "--output", f"oci:{layout}"]
    kill_everywhere(Killer(made.checkout, command, tmp_path), remove, check)


def test_killed_publish(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    """No tag is there without all that belongs to it; each call publishes to a repository of its own."""
    record_property("fault", "kill -9")
    monkeypatch.setattr(killed, "SAMPLED", (0.6, 1.0))
    numbers, made = count(), publisher.made
    key, public = (str(publisher.keys / f"ours.{kind}") for kind in ("key", "pub"))
    options = ["--image", str(made.layout), "--report", str(publisher.report), "--key", key]
    killer = Killer(made.checkout, ["publish", "tiny", publisher.where, *options], tmp_path / "killer")

    def tags() -> list[str]:
        registry = Registry(Reference.parse(killer.command[2]))
        return [tag for tag in publisher.tags if registry.manifest(tag)]

    def remove() -> None:
        if tags():  # of the call before: whatever is there has to be whole
            assert verified(made.checkout, f"{killer.command[2]}@{publisher.digest}", "--key", public)["proven"] is True
        killer.command[2] = f"{publisher.where}-{next(numbers)}"

    def check() -> object:
        assert tags() == publisher.tags
        folder = made.checkout.root / "build" / "publish" / "tiny-runtime"
        assert not [path.name for path in folder.iterdir() if path.name != ".lock"]
        return publisher.tags

    assert kill_everywhere(killer, remove, check) > 10
    assert verified(made.checkout, f"{killer.command[2]}@{publisher.digest}", "--key", public)["passed"]


def test_two_verifications_at_once(made: Made, tmp_path: Path, record_property: Record) -> None:
    """Of one image, and of one that differs: they share the folder in which layers are made, and neither disturbs the other."""
    record_property("fault", "two at once")
    other = tmp_path / "other"
    shutil.copytree(made.layout, other)
    index = json.loads((other / "index.json").read_text())
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "x"
    (other / "index.json").write_text(json.dumps(index))
    started = [made.checkout.start("verify", f"oci:{place}", "--json") for place in (made.layout, made.layout, other)]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    found = [json.loads(out) for out, _ in ended]
    assert {entry["digest"] for entry in found} == {Layout(made.layout).image().digest}
    assert any(re.search(r"waiting for process \d+, which is verifying tiny", said) for _, said in ended)
    [spdx] = {Path(entry["sbom"]) for entry in found}
    listed = {reference["referenceLocator"] for package in json.loads(spdx.read_text())["packages"][1:] for reference in
              package["externalRefs"]}  # fmt: skip
    assert listed == {package["purl"] for package in json.loads(spdx.with_name("sbom.cdx.json").read_text())["components"]}
