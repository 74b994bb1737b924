"""The folder that an environment is installed in, and the machine it must be installed on."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
