"""The folder that an environment is installed in, and the machine it must be installed on."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.tags import platform_tags

from smokehouse.errors import UserError

MARKER = ".smokehouse.json"

# Installed size by the size of the wheels. Measured on qwen2.5-vl: 3.3 GB of wheels take 6.6 GB with their bytecode.
PYPI_GROWTH = 2.0


def read_marker(folder: Path) -> object:
    """Return the marker of a complete installation in `folder`, None without one."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


def is_same(found: object, marker: Mapping[str, Any]) -> bool:
    """Return whether the marker `found` in a folder is `marker`, which may have tuples for lists."""
    return bool(found == json.loads(json.dumps(marker)))


def unfinished(name: str) -> str:
    """Return the marker of an installation of the environment `name` that is being changed."""
    return json.dumps({"environment": name, "unfinished": True}) + "\n"


def require_own_folder(folder: Path, name: str) -> None:
    """Raise UserError where `folder` has other content than an installation of the environment `name`."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: expected a folder, found a file or link; specify an empty or new one")
    if folder.is_dir() and any(folder.iterdir()):
        marker = read_marker(folder)
        if not isinstance(marker, dict) or marker.get("environment") != name:
            raise UserError(f"{folder}: expected an installation of {name}, found other files; specify an empty or new folder")


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
