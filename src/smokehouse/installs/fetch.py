"""Fetch the artefacts of a lock, from a conda channel and from the package index that uv is configured with."""

import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smokehouse import storage
from smokehouse.errors import UserError
from smokehouse.locks import CondaPackage, Lock, LockedFile
from smokehouse.locks.wheel_tags import artefacts
from smokehouse.programs import uv
from smokehouse.storage import files

_OTHER_INDEX = "set UV_DEFAULT_INDEX to an index that has it"
_OTHER_CHANNEL = "use another --channel"


def fetch_conda(packages: Sequence[CondaPackage], folder: Path, channel: str) -> None:
    """Make `folder` a channel with the archives of `packages`, verified by their hashes.

    They are fetched from `channel`, a folder or a URL. Raises UserError.
    """
    source = channel.rstrip("/")
    source = source if "://" in source else str(Path(source).absolute())
    missing = [package for package in packages if not files.is_whole(folder / package.path, package.sha256)]
    if missing:  # what downloads is slow to import
        storage.fetch(
            [storage.Download(folder / each.path, f"{source}/{each.path}", each.sha256, each.size) for each in missing],
            remedy=_OTHER_CHANNEL,
        )


def fetch_pip(lock: Lock, folder: Path) -> None:
    """Fetch the wheels and source distributions of a lock, and their build requirements, into `folder`.

    Files that are there with the right hash are not fetched. Raises UserError.
    """
    missing = _missing((*lock.pip, *lock.build), folder)
    if not missing:
        return
    urls = _urls(missing, lock)
    storage.fetch(
        [storage.Download(folder / file.file, urls[file.file, file.sha256], file.sha256, file.size) for file in missing],
        remedy=_OTHER_INDEX,
        credentials=storage.credentials_of(uv.index_urls()),
    )


def _missing(locked: Sequence[LockedFile], folder: Path) -> list[LockedFile]:
    """Return the files that are not in `folder` with their hash."""
    unique = list({file.file: file for file in locked}.values())
    with ThreadPoolExecutor() as threads:
        whole = threads.map(lambda file: files.is_whole(folder / file.file, file.sha256), unique)
        return [file for file, there in zip(unique, whole, strict=True) if not there]


def _urls(locked: Sequence[LockedFile], lock: Lock) -> dict[tuple[str, str], str]:
    """Return the URL or path of each file by its name and hash; raises UserError where the index has none."""
    pins = sorted({f"{file.name}=={file.version}" for file in locked})
    listed = tomllib.loads(uv.list_files(pins, lock.python, lock.platform))
    urls: dict[tuple[str, str], str] = {}
    for package in listed.get("packages", []):
        try:
            entries = artefacts([*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])])
        except KeyError:
            raise UserError(f"{package['name']}: SHA-256 not found in the index; {_OTHER_INDEX}") from None
        for entry in entries:
            url = entry.url if "://" in entry.url else str(Path("/", entry.url))
            urls[entry.name, entry.sha256] = url
    for file in locked:
        if (file.file, file.sha256) not in urls:
            raise UserError(f"{file.file}: file with this name and hash not found in the index; {_OTHER_INDEX}")
    return urls
