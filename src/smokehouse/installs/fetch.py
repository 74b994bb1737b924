"""Where the artefacts of a lock come from: a conda channel, and whatever package index uv is configured with."""

import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import canonicalize_name

from smokehouse.errors import UserError
from smokehouse.locks.model import CondaPackage, Lock, LockedFile
from smokehouse.locks.wheel_tags import artefacts
from smokehouse.programs import uv
from smokehouse.storage.download import Download, credentials_of, fetch, is_whole

_OTHER_INDEX = "set UV_DEFAULT_INDEX to an index that has it"
_OTHER_CHANNEL = "use another --channel"


def fetch_conda(packages: Sequence[CondaPackage], folder: Path, channel: str) -> None:
    """Make `folder` a channel with the archives of `packages`, each seen to have its hash.

    They come from `channel`, a folder or a URL. Raises UserError.
    """
    source = channel.rstrip("/")
    source = source if "://" in source else str(Path(source).absolute())
    fetch(
        [
            Download(folder / package.path, f"{source}/{package.path}", package.sha256, package.size)
            for package in packages
            if not is_whole(folder / package.path, package.sha256)
        ],
        remedy=_OTHER_CHANNEL,
    )


def fetch_pip(manifest: Lock, folder: Path) -> None:
    """Put the wheels and source distributions of a lock, and what they are built with, into `folder`.

    What lies there with the right hash already is not asked for. Raises UserError.
    """
    lacking = absent((*manifest.pip, *manifest.build), folder)
    if not lacking:
        return
    places = _places(lacking, manifest)
    fetch(
        [Download(folder / file.file, places[file.file, file.sha256], file.sha256, file.size) for file in lacking],
        remedy=_OTHER_INDEX,
        credentials=credentials_of(uv.index_urls()),
    )


def absent(locked: Sequence[LockedFile], folder: Path) -> list[LockedFile]:
    """Return those of `locked` that do not lie in `folder` with their hash."""
    unique = list({file.file: file for file in locked}.values())
    with ThreadPoolExecutor() as threads:
        whole = threads.map(lambda file: is_whole(folder / file.file, file.sha256), unique)
        return [file for file, there in zip(unique, whole, strict=True) if not there]


def _places(locked: Sequence[LockedFile], manifest: Lock) -> dict[tuple[str, str], str]:
    """Return the URL or path of each of `locked` by its name and hash; raises UserError where the index has none."""
    pins = sorted({f"{file.name}=={file.version}" for file in locked})
    listed = tomllib.loads(uv.list_files(pins, manifest.python, manifest.platform))
    places: dict[tuple[str, str], str] = {}
    known: set[str] = set()
    for package in listed.get("packages", []):
        known.add(canonicalize_name(package["name"]))
        try:
            entries = artefacts([*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])])
        except KeyError:
            raise UserError(f"{package['name']}: the index gives no SHA-256 for it; {_OTHER_INDEX}") from None
        for entry in entries:
            url = entry.url if "://" in entry.url else str(Path("/", entry.url))
            places[entry.name, entry.sha256] = url
    for file in locked:
        if (file.file, file.sha256) not in places:
            raise UserError(f"{file.file}: the index has no file of this name and hash; {_OTHER_INDEX}")
    return places
