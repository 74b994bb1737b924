"""A bundle is only a way to carry files: the lock of the checkout says what they have to be, and its manifest cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smokehouse.storage.files import hashed

from ..unit.channel import Channel
from ..unit.conftest import TestCheckout

Manifest = dict[str, Any]


@pytest.fixture
def bundle(channel: Channel, checkout: TestCheckout, tmp_path: Path) -> Path:
    """A complete bundle with the toolkit."""
    checkout.lock("--channel", str(channel.folder))
    folder = tmp_path / "bundle"
    ended = checkout.run("bundle", "tiny", str(folder), "--channel", channel.url, "--devel")
    assert ended.returncode == 0, ended.stderr
    return folder


def edit(folder: Path, change: Callable[[Manifest], object]) -> None:
    """Change the manifest of a bundle."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def refused(checkout: TestCheckout, folder: Path, target: Path, *said: str) -> None:
    """Require that each verb that takes a bundle refuses it, before anything is installed from it."""
    for verb in (["install", "tiny", str(target)], ["smoke", "tiny"]):
        found = checkout.refused(*verb, "--bundle", str(folder))
        assert all(part in found for part in said), found
    assert not target.exists()
    assert not (checkout.root / "build" / "bundled" / "tiny").exists()


def test_no_file_of_a_bundle_is_believed_instead_of_the_lock(checkout: TestCheckout, bundle: Path, tmp_path: Path) -> None:
    paths = [path for path in json.loads((bundle / "manifest.json").read_text())["files"] if path != "lock/lock.json"]
    assert {path.partition("/")[0] for path in paths} == {"lock", "wheels", "conda", "pylock.toml"}
    for path in paths:
        folder = tmp_path / "edited"
        shutil.copytree(bundle, folder)
        (folder / path).write_bytes(b"foreign")
        # First with the manifest that came with it, then with one that agrees with the foreign file.
        if path.startswith(("wheels", "conda")):
            said = checkout.refused("install", "tiny", str(tmp_path / "t"), "--bundle", str(folder), "--devel")
            assert "expected SHA-256" in said
        digest = hashed(folder / path)
        edit(folder, lambda manifest, path=path, digest=digest: manifest["files"].update({path: digest}))  # type: ignore[misc]
        refused(checkout, folder, tmp_path / "target", f"manifest.json: {path}: expected SHA-256 ", "from the lock, found")
        shutil.rmtree(folder)


FAULTS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "a wheel left out": (
        lambda manifest: manifest["files"].pop(next(path for path in manifest["files"] if path.startswith("wheels/"))),
        "from the lock, found none",
    ),
    "a file more": (
        lambda manifest: manifest["files"].update({"wheels/evil-1.0-py3-none-any.whl": "0" * 64}),
        "wheels/evil-1.0-py3-none-any.whl: expected no such file, found 000",
    ),
    "conda packages of another category": (
        lambda manifest: manifest.update(devel=False),
        "expected no such file",
    ),
    "without its conda packages": (lambda manifest: manifest.update(halves=["pip"]), "expected no such file"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_manifest_that_lists_other_files_is_refused(checkout: TestCheckout, bundle: Path, tmp_path: Path, kind: str) -> None:
    change, said = FAULTS[kind]
    edit(bundle, change)
    refused(checkout, bundle, tmp_path / "target", said)


def test_a_manifest_with_a_key_twice_is_refused(checkout: TestCheckout, bundle: Path, tmp_path: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace('"environment"', '"environment": "other", "environment"', 1))
    refused(checkout, bundle, tmp_path / "target", "manifest.json: the file: Invalid JSON: key 'environment' occurs twice")
