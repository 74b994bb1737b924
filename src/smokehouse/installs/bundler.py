"""Make bundles."""

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
    lock, folder = locked.lock, folder.absolute()
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
        for file in _files(folder):
            if str(file.relative_to(folder)) not in manifest.files:
                file.unlink()
        files.write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
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


def _files(folder: Path) -> list[Path]:
    """Return the files in the folders of a bundle."""
    return [path for part in (LOCK, WHEELS, CONDA) for path in (folder / part).rglob("*") if not path.is_dir()]
