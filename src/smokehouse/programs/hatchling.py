"""hatchling, which builds wheels of pure Python."""

import os
import sys
import zipfile
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import run

_DEADLINE = 120.0  # seconds

# hatchling's own, which it replaces by that of SOURCE_DATE_EPOCH.
_TIME = (2020, 2, 2, 0, 0, 0)


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of a `project` in `folder`, and return it; no network is used.

    The wheel has the same bytes for the same sources: its members are stored, because what a compression makes depends on
    the version of zlib, and have one time and mode. Raises UserError where it cannot be built.
    """
    environ = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder.absolute())]
    ended = run(command, deadline=_DEADLINE, environ=environ, cwd=project)
    wheels = [*folder.glob("*.whl")]
    if ended.code or len(wheels) != 1:
        said = (ended.stderr or ended.stdout).strip().rpartition("\n")[2] or f"{len(wheels)} wheels in {folder}"
        raise UserError(f"{project}: expected to build one wheel, found {said}; install Smokehouse again, which has hatchling")
    _store(wheels[0])
    return wheels[0]


def _store(wheel: Path) -> None:
    """Write a wheel again, in the same order and without compression."""
    copy = wheel.with_suffix(".stored")
    with zipfile.ZipFile(wheel) as compressed, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as stored:
        for member in compressed.infolist():
            info = zipfile.ZipInfo(member.filename, _TIME)
            info.external_attr = 0o100644 << 16
            stored.writestr(info, compressed.read(member))
    copy.replace(wheel)
