"""Locks with both halves, written from what a channel and an index have."""

import json
from datetime import date

from smokehouse import files
from smokehouse.manifest import Channel as From
from smokehouse.manifest import CondaPackage, LockedFile, Manifest

from .channel import PYTHON, Channel
from .conftest import Index, TestHouse

MAIN = ("python", "libtiny", "certificates")
DEVEL = ("cuda-nvcc", "cuda-version", "gxx-tiny")


def lock(house: TestHouse, channel: Channel, index: Index, **changes: object) -> Manifest:
    """Lock the pip half of `house`, and write the conda half by hand; `changes` are of lock.json."""
    house.lock()
    folder = house.pins.parent
    pins = house.pins.read_text()
    builds = house.build_pins.read_text()
    (folder / "conda-lock.yml").write_text("version: 1\n")
    names = ("requirements.txt", "build-requirements.txt", "conda-lock.yml")
    content = {
        "environment": "tiny",
        "python": PYTHON,
        "platform": "x86_64-manylinux_2_28",
        "cutoff": date(2025, 3, 15),
        "inputs": "0" * 64,
        "virtual_packages": {"__cuda": "12.4", "__glibc": "2.28"},
        "channel": From(name="conda-forge", snapshot="0" * 64),
        "tools": {},
        "files": {name: files.hashed(folder / name) for name in names},
        "conda": tuple(conda(channel, name) for name in sorted(MAIN + DEVEL)),
        "pip": tuple(file for name, data in index.files.items() if (file := locked(name, data.data)).sha256 in pins),
        "build": tuple(file for name, data in index.files.items() if (file := locked(name, data.data)).sha256 in builds),
    }
    manifest = Manifest.model_validate(content | changes)
    (folder / "lock.json").write_text(manifest.text())
    return manifest


def conda(channel: Channel, name: str) -> CondaPackage:
    """The oldest package `name` of the channel."""
    records = {
        file: record
        for repodata in channel.folder.glob("*/repodata.json")
        for file, record in json.loads(repodata.read_text())["packages.conda"].items()
        if record["name"] == name
    }
    file, record = min(records.items(), key=lambda item: item[1]["version"])
    fields = {key: record[key] for key in ("name", "version", "build", "subdir", "size", "sha256")}
    return CondaPackage(file=file, category="devel" if name in DEVEL else "main", **fields)


def locked(name: str, data: bytes) -> LockedFile:
    """A file of the index."""
    project, version = name.removesuffix(".tar.gz").split("-")[:2]
    return LockedFile(name=project, version=version, file=name, size=len(data), sha256=files.sha256(data))
