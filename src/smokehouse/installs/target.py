"""The folder that an environment is installed in, and the machine it must be installed on."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.tags import platform_tags

from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.storage import files

MARKER = ".smokehouse.json"
_RECORD = ".smokehouse-files"  # in an installation: the paths of its own files, a line each
# What programs with the path in their first line, and uv, cannot read.
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST_RECORD = 256 << 20  # bytes

# Installed size by the size of the wheels. Measured on qwen2.5-vl: 3.3 GB of wheels take 6.6 GB with their bytecode.
PYPI_GROWTH = 2.0


def read_marker(folder: Path) -> object:
    """Return the marker of a complete installation in `folder`, None without one."""
    try:
        return json.loads(files.read(folder / MARKER))
    except (OSError, ValueError, RecursionError):
        return None


def is_same(found: object, marker: Mapping[str, Any]) -> bool:
    """Return whether the marker `found` in a folder is `marker`, which may have tuples for lists."""
    return bool(found == json.loads(json.dumps(marker)))


def unfinished(name: str) -> str:
    """Return the marker of an installation of the environment `name` that is being changed."""
    return json.dumps({"environment": name, "unfinished": True}) + "\n"


def installed_already(folder: Path, *, repair: bool) -> str:
    """Return what a call says that finds nothing to do."""
    return f"{folder}: as installed, {'every file' if repair else 'by names and sizes of files; --repair reads them'}"


def resolved(folder: Path) -> Path:
    """Return the one absolute path of a place, which names it wherever it was typed.

    Its last part is left as it is, since `require_place` refuses links.
    """
    return Path(os.path.realpath(folder.parent), folder.name)


def require_place(folder: Path) -> None:
    """Raise UserError where no environment can be in `folder`, for which it need not exist."""
    if folder.name in ("", ".."):
        raise UserError(f"{folder}: expected a folder with a name of its own; specify an empty or new one")
    if _UNFIT.search(str(folder)):
        raise UserError(f"{str(folder)!a}: expected a path in UTF-8 without control characters; specify another folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: expected a folder, found a file or link; specify an empty or new one")


def require_own_folder(folder: Path, name: str) -> None:
    """Raise UserError where `folder` has other content than an installation of the environment `name`."""
    require_place(folder)
    if folder.is_dir() and any(folder.iterdir()):
        marker = read_marker(folder)
        if not isinstance(marker, dict) or marker.get("environment") != name:
            raise UserError(f"{folder}: expected an installation of {name}, found other files; specify an empty or new folder")


def write_record(folder: Path, others: AbstractSet[str]) -> None:
    """List the files of an installation in `folder`, all but `others`, for `others_in`; raises OSError."""
    text = "".join(f"{path}\n" for path in sorted(_paths(folder) - others))
    files.write(folder / _RECORD, text.encode("utf-8", "surrogateescape"))


def others_in(folder: Path, python: str) -> set[str]:
    """Return the paths of the files in an installation that it does not list, those in site-packages apart.

    Site-packages belong to the installation, with whatever was installed there since. Empty without a list.
    """
    try:
        with files.open_regular(folder / _RECORD) as file:
            listed = set(file.read(_LONGEST_RECORD).decode("utf-8", "surrogateescape").split("\n"))
    except OSError:
        return set()
    packages = f"lib/python{python}/"
    return {path for path in _paths(folder) - listed if not path.startswith(packages) and not path.endswith(".pyc")}


def carry_over(old: Path, new: Path, python: str) -> None:
    """Move the files in `old` that are no part of its installation to the same places in `new`; raises OSError."""
    others = others_in(old, python)
    for path in sorted(others):
        target = new / path
        if not os.path.lexists(target) and target.parent.resolve().is_relative_to(new.resolve()):
            target.parent.mkdir(parents=True, exist_ok=True)
            (old / path).rename(target)
    if others:
        status(f"kept {len(others)} files in {new} that are not of the installation")


def _paths(folder: Path) -> set[str]:
    """Return the paths of all files and links below `folder`."""
    found = set()
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found |= {str(Path(place, name).relative_to(folder)) for name in (*names, *links)}
    return found - {_RECORD, MARKER}


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield the path `folder`, at which nothing exists, and remove it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_platform(platform: str, name: str) -> None:
    """Raise UserError where this machine is not compatible with the `platform` of the lock `name`."""
    machine, _, libc = platform.partition("-")
    tags = list(platform_tags())
    if f"{libc}_{machine}" not in tags:
        raise UserError(f"{name}: expected a machine compatible with {platform}, found {tags[0]}; use another machine")
