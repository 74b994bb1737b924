"""Record which releases of which packages print the texts of the table of known failures: tests/data/printed.json.

Run `python -m tests.loader.record_texts [PACKAGE…]` after a place in failures/printed.py has changed. The last release of each
minor version is downloaded by uv's list of its files and their hashes, and where one has a text that the next has not, those
between, until two releases that follow each other show where the text came or went. Nothing that is downloaded is executed.
"""

import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from smokehouse.locks.wheel_tags import Artefact, artefacts
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.download import Download, credentials_of, fetch
from tests.loader.texts import Place, missing, places

RECORD = Path(__file__).parents[1] / "data/printed.json"
DEADLINE = 120.0  # seconds
LINUX = "x86_64-manylinux_2_28"
# The wheels for macOS have the same sources in a tenth of the bytes; but other libraries.
MACOS = "aarch64-apple-darwin"
LINUX_ONLY = " (Linux)"
# The oldest release of each package that is read: about as old as the first that knows Qwen2-VL.
OLDEST = {
    "accelerate": "0.34.0",
    "bitsandbytes": "0.44.0",
    "decord": "0.5.0",
    "deepspeed": "0.13.0",
    "diffusers": "0.33.0",
    "flash-attn": "2.6.0",
    "hf-xet": "1.0.0",
    "huggingface-hub": "0.25.0",
    "llamafactory": "0.9.0",
    "numpy": "1.26.0",
    "nvidia-cuda-runtime-cu12": "12.1.0",
    "nvidia-cudnn-cu12": "9.1.0",
    "nvidia-nccl-cu12": "2.20.0",
    "peft": "0.13.0",
    "pillow": "10.4.0",
    "protobuf": "4.21.0",
    "qwen-vl-utils": "0.0.4",
    "requests": "2.32.0",
    "safetensors": "0.4.0",
    "tokenizers": "0.20.0",
    "torch": "2.4.0",
    "torch (Linux)": "2.4.0",
    "torchcodec": "0.1.0",
    "transformers": "4.45.0",
    "triton": "3.0.0",
    "trl": "0.11.0",
    "urllib3": "2.0.0",
    "vllm": "0.7.0",
    "wandb": "0.17.0",
}
# Packages of gigabytes: these releases only, without those between.
ONLY = {
    "nvidia-cudnn-cu12": ("9.1.0.70", "9.5.1.17", "9.10.2.21", "9.15.1.9", "9.20.0.48", "9.28.0.42"),
    "nvidia-nccl-cu12": ("2.20.5", "2.21.5", "2.23.4", "2.25.1", "2.26.5", "2.27.5", "2.28.9", "2.30.7", "2.32.3"),
    "torch (Linux)": ("2.4.1", "2.6.0", "2.8.0", "2.10.0", "2.12.1", "2.15.0"),
    "vllm": ("0.7.3", "0.8.5.post1", "0.9.2", "0.10.2", "0.11.2", "0.14.1", "0.18.1", "0.20.2", "0.26.0", "0.33.0"),
}
# Read from source distributions, since wheels have not the sources of what is compiled.
FROM_SOURCE = ("vllm",)


def recorded_as(place: Place) -> str:
    """Return the name under which a place is recorded: its package, and for the libraries of torch those for Linux."""
    name = canonicalize_name(place.required.name)
    return name + (LINUX_ONLY if name == "torch" and not place.is_source else "")


@cache
def releases(package: str) -> list[str]:
    """Return the versions of a package in the index from the oldest one that is read on, oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", package.removesuffix(LINUX_ONLY), "--json"]
    for url in uv.index_urls()[:1]:
        command += ["--index-url", url]
    ended = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE)
    found = sorted({Version(one) for one in json.loads(ended.stdout)["versions"]})
    return [str(one) for one in found if one >= Version(OLDEST[package]) and not one.is_prerelease and not one.local]


def coarse(package: str) -> list[str]:
    """Return the last release of each minor version."""
    if package in ONLY:
        return list(ONLY[package])
    last = {Version(one).release[:2]: one for one in releases(package)}
    return list(last.values())


def chosen(package: str, version: str) -> Artefact:
    """Return the wheel of a release for the platform that is read, its source distribution if there is none."""
    platform = MACOS if package == "torch" else LINUX
    listed = tomllib.loads(uv.list_files([f"{package.removesuffix(LINUX_ONLY)}=={version}"], "3.11", platform))["packages"][0]
    wheels = artefacts(listed.get("wheels", [])) if package not in FROM_SOURCE else []
    tags = ("macosx",) if package == "torch" else ("manylinux", "linux_x86_64", "none-any")
    fitting = [
        wheel
        for wheel in wheels
        if any(tag in wheel.name for tag in tags)
        and any(tag in wheel.name for tag in ("cp311", "abi3", "py3-", "py2.py3-"))
        and not any(
            tag in wheel.name
            for tag in ("aarch64", "ppc64le", "s390x", "i686", "armv7l", "x86_64.whl" if package == "torch" else "win")
        )
    ]
    return fitting[0] if fitting else artefacts([listed["sdist"]])[0]


@contextmanager
def opened(artefact: Artefact, folder: Path) -> Iterator[Callable[[str], bytes | None]]:
    """Download an artefact, and open it as a function that returns a file of it, None where it has none of that name."""
    path = folder / artefact.name
    fetch(
        [Download(path, artefact.url, artefact.sha256, artefact.size)],
        remedy="try again",
        credentials=credentials_of(uv.index_urls()),
    )
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                names = set(wheel.namelist())
                yield cache(lambda name: wheel.read(name) if name in names else None)
        else:
            with tarfile.open(path) as archive:
                members = {one.name.split("/", 1)[-1].removeprefix("src/"): one for one in archive if one.isfile()}
                yield cache(lambda name: _read(archive, members.get(name)))
    finally:
        path.unlink()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes | None:
    opened_file = archive.extractfile(member) if member else None
    return opened_file.read() if opened_file else None


def record(package: str, wanted: Sequence[Place]) -> dict[str, Any]:
    """Return the releases of a package that were read, and for each file and text which of them have it: 0 or 1 a release."""
    found: dict[str, dict[tuple[str, str], bool]] = {}
    artefact: dict[str, Artefact] = {}
    queue = coarse(package)
    with tempfile.TemporaryDirectory() as folder:
        while queue:
            for version in queue:
                artefact[version] = chosen(package, version)
                with opened(artefact[version], Path(folder)) as read:
                    found[version] = {(place.key, place.text): not missing(place, read) for place in wanted}
            queue = [] if package in ONLY else between(found, releases(package))
    ordered = sorted(found, key=Version)
    texts: dict[str, dict[str, str]] = {}
    for place in wanted:
        bits = "".join(str(int(found[version][place.key, place.text])) for version in ordered)
        texts.setdefault(place.key, {})[place.text] = bits
    return {
        "releases": {version: {"file": artefact[version].name, "sha256": artefact[version].sha256} for version in ordered},
        "texts": {key: dict(sorted(texts[key].items())) for key in sorted(texts)},
    }


def between(found: dict[str, dict[tuple[str, str], bool]], known: Sequence[str]) -> list[str]:
    """Return a release between each two that were read and differ, the middle one; none where they follow each other."""
    ordered = sorted(found, key=Version)
    middles = []
    for older, newer in itertools.pairwise(ordered):
        inside = [one for one in known if Version(older) < Version(one) < Version(newer)]
        if inside and found[older] != found[newer]:
            middles.append(inside[len(inside) // 2])
    return middles


def main(names: Sequence[str]) -> None:
    """Record the packages `names`, all if none are given."""
    os.environ["MACOSX_DEPLOYMENT_TARGET"] = "15.0"  # uv takes wheels for at most this one
    by_package: dict[str, list[Place]] = {}
    for place in places():
        by_package.setdefault(recorded_as(place), []).append(place)
    for package in sorted(names or by_package):
        print(package, flush=True)
        found = record(package, by_package[package])
        recorded = {**(json.loads(RECORD.read_text()) if RECORD.exists() else {}), package: found}
        kept = {name: recorded[name] for name in sorted(recorded) if name in by_package}
        files.write(RECORD, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
