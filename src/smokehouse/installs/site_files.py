"""The files that Smokehouse adds to the site-packages of an environment."""

import os
import stat
from pathlib import Path

from smokehouse.storage import files

_SOURCE = Path(__file__).with_name("site")
EXECUTABLE = "_smokehouse_cuda/bin/nvcc"


def contents(cuda: str) -> dict[str, bytes]:
    """Return the files for an environment of the CUDA release `cuda`, by their path in site-packages."""
    found = {
        str(path.relative_to(_SOURCE)): path.read_bytes()
        for path in sorted(_SOURCE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {**found, "_smokehouse_cuda/release": f"{cuda}\n".encode()}


def add(prefix: Path, python: str, cuda: str) -> None:
    """Add them to the environment of Python `python` in `prefix`, unless they are there already; raises OSError."""
    site = prefix / "lib" / f"python{python}" / "site-packages"
    for name, data in contents(cuda).items():
        path = site / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, data)
        if name == EXECUTABLE and not os.access(path, os.X_OK):
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
