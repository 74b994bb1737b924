"""Making bundles."""

from collections.abc import Mapping
from pathlib import Path

from smokehouse import console
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.environments import definition as environment
from smokehouse.errors import UserError
from smokehouse.installs import fetch as sources
from smokehouse.installs.bundle import CONDA, LOCK, MANIFEST, WHEELS, Contents, pylock
from smokehouse.locks import check
from smokehouse.locks import model as manifest
from smokehouse.locks import pins as lock
from smokehouse.locks.model import LockedFile
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

_PYLOCK = "pylock.toml"


def make(
    checkout: Checkout, name: str, folder: Path, *, channel: str | None, only_pip: bool, devel: bool, near: bool = False
) -> int:
    """Make `folder` the bundle of the environment `name` and return 0.

    With `near`, the files of the bundles beside it are used, without a copy where the disk allows. What an interrupted call
    fetched is used. The bundle is complete when its manifest.json is there, which is written last. Raises UserError.
    """
    place = lock.environment_lock(checkout, name)
    locked = check.check_environment(environment.read(checkout, name), place)
    folder = folder.absolute()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).is_dir():
        raise UserError(f"{folder}: holds other things than a bundle; name an empty or a new folder")
    conda = () if only_pip else locked.conda if devel else locked.main
    artefacts: dict[str, LockedFile] = {f"{WHEELS}/{file.file}": file for file in (*locked.pip, *locked.build)}
    artefacts |= {f"{CONDA}/{package.path}": package for package in conda}
    texts = {f"{LOCK}/{other}": place.pins.with_name(other).read_text("utf-8") for other in (manifest.MANIFEST, *locked.files)}
    texts[_PYLOCK] = pylock(locked)
    contents = Contents(
        environment=name,
        halves=("pip",) if only_pip else ("conda", "pip"),
        devel=devel,
        files={path: files.sha256(text) for path, text in texts.items()}
        | {path: file.sha256 for path, file in artefacts.items()},
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"bundling {name}"):
        (folder / LOCK).mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        if near:
            _link_near(folder, artefacts)
        size = sum(file.size for file in artefacts.values())
        there = sum(path.stat().st_size for path in _files(folder))
        require_free_space(folder, max(0, size - there), f"bundle {name}")
        status(f"bundling {name} ({len(artefacts)} files, {console.size(size)})")
        sources.fetch_pip(locked, folder / WHEELS)
        sources.fetch_conda(conda, folder / CONDA, channel or locked.home)
        for path, text in texts.items():
            files.write(folder / path, text)
        for file in _files(folder):
            if str(file.relative_to(folder)) not in contents.files:
                file.unlink()
        files.write(folder / MANIFEST, contents.model_dump_json(indent=1) + "\n")
    status(f"bundled {name} in {folder}")
    return 0


def _link_near(folder: Path, artefacts: Mapping[str, LockedFile]) -> None:
    """Bring what the bundles beside `folder` have by the names of `artefacts`; whether it is that is seen later."""
    for path, file in artefacts.items():
        if (folder / path).exists():
            continue
        for other in folder.parent.iterdir():
            if (other / path).is_file() and (other / path).stat().st_size == file.size:
                files.link_or_copy(other / path, folder / path)
                break


def _files(folder: Path) -> list[Path]:
    """Return the files in the places of a bundle."""
    return [path for part in (LOCK, WHEELS, CONDA) for path in (folder / part).rglob("*") if not path.is_dir()]
