"""Make bundles."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from smokehouse import console
from smokehouse.console import heartbeat, status
from smokehouse.errors import UserError
from smokehouse.installs import bundle, fetch
from smokehouse.installs.bundle import CONDA, LOCK, MANIFEST, WHEELS, Bundle, BundleManifest
from smokehouse.locks import LockedEnvironment, LockedFile
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

# Of an unfinished call: the paths that it and earlier ones write. Nothing else is ever deleted.
_RECORD = ".files.json"
_LONGEST_RECORD = 8 << 20  # bytes
_OWN_PATH = re.compile(rf"({LOCK}|{WHEELS}|{CONDA})(/[A-Za-z0-9_][A-Za-z0-9._!+-]*)+")


def make(
    locked: LockedEnvironment,
    folder: Path,
    *,
    channel: str | None = None,
    only_pip: bool = False,
    devel: bool = False,
    reuse: Sequence[Path] = (),
) -> Bundle:
    """Make or complete the bundle of an environment in `folder`, and return it; raises UserError.

    What one of the bundles `reuse` has is linked or copied instead of fetched. manifest.json is written last, so that a bundle
    with it is complete.
    """
    lock, folder = locked.lock, Path(os.path.realpath(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).is_dir():
        raise UserError(f"{folder}: expected a bundle or an empty folder, found other files; specify another folder")
    conda = () if only_pip else lock.conda if devel else lock.main
    halves: tuple[Literal["conda", "pip"], ...] = ("pip",) if only_pip else ("conda", "pip")
    artefacts, texts = bundle.artefacts(lock, halves, devel=devel), bundle.texts(locked)
    manifest = BundleManifest(
        environment=locked.name,
        halves=halves,
        devel=devel,
        files={path: files.sha256(text) for path, text in texts.items()}
        | {path: file.sha256 for path, file in artefacts.items()},
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"bundling {locked.name}"):
        (folder / LOCK).mkdir(parents=True, exist_ok=True)
        _require_own_names(folder, artefacts)
        earlier = _recorded(folder)
        files.write(folder / _RECORD, json.dumps(sorted({*earlier, *manifest.files})))
        (folder / MANIFEST).unlink(missing_ok=True)
        copied = _link(_reusable(folder, artefacts, reuse))
        size = sum(file.size for file in artefacts.values())
        present = sum(path.stat().st_size for path in _files(folder))
        require_free_space(folder, max(0, size - present), f"bundle {locked.name}")
        status(f"bundling {locked.name} ({len(artefacts)} files, {console.size(size)})")
        with heartbeat("copying from other bundles"):
            for target, source in copied.items():
                files.link_or_copy(source, target)
        fetch.fetch_pip(lock, folder / WHEELS)
        fetch.fetch_conda(conda, folder / CONDA, channel or lock.channel_url)
        for path, text in texts.items():
            files.write(folder / path, text)
        for path in earlier - manifest.files.keys():
            _remove(folder, path)
        files.write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        (folder / _RECORD).unlink()
    status(f"bundled {locked.name} in {folder}")
    return bundle.read(folder, locked)


def _reusable(folder: Path, artefacts: Mapping[str, LockedFile], bundles: Sequence[Path]) -> dict[Path, Path]:
    """Return by its path in `folder` the file of another bundle for each artefact that is not there, by name and size.

    Hashes are verified when all files are there.
    """
    found = {}
    for path, file in artefacts.items():
        places = [(bundle / path).resolve() for bundle in (folder, *bundles)]
        source = next((place for place in places if place.is_file() and place.stat().st_size == file.size), None)
        if source and source != places[0]:
            found[folder / path] = source
    return found


def _link(sources: Mapping[Path, Path]) -> dict[Path, Path]:
    """Hard-link files to their sources, in place of what is there, and return those that must be copied."""
    left = {}
    for target, source in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another file system, or one without hard links
            left[target] = source
    return left


def _recorded(folder: Path) -> set[str]:
    """Return the paths that an earlier call wrote: of the complete bundle that is there, and of calls that were interrupted."""
    found: set[str] = set()
    for name in (MANIFEST, _RECORD):
        try:
            with files.open_regular(folder / name) as file:
                content = json.loads(file.read(_LONGEST_RECORD))
            found |= {path for path in (content["files"] if name == MANIFEST else content) if _OWN_PATH.fullmatch(path)}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _require_own_names(folder: Path, artefacts: Mapping[str, LockedFile]) -> None:
    """Raise UserError where a link leads to a folder in which another file has the name of an artefact: it is not replaced."""
    for path, file in artefacts.items():
        place = folder / path
        if os.path.lexists(place) and not _is_inside(folder, path) and not files.is_whole(place, file.sha256):
            raise UserError(
                f"{place}: expected SHA-256 {file.sha256}, found another file in a linked folder; remove it or the link"
            )


def _is_inside(folder: Path, path: str) -> bool:
    return (folder / path).parent.resolve() == folder.resolve() / Path(path).parent


def _remove(folder: Path, path: str) -> None:
    """Remove the file `path` of an earlier bundle, and its partial download, unless a link leads elsewhere."""
    place = folder / path
    if _is_inside(folder, path):
        for file in (place, place.with_name(f"{place.name}.part")):
            if file.is_symlink() or file.is_file():
                file.unlink()


def _files(folder: Path) -> list[Path]:
    """Return the files in the folders of a bundle."""
    return [path for part in (LOCK, WHEELS, CONDA) for path in (folder / part).rglob("*") if not path.is_dir()]
