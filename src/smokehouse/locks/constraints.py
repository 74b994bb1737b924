"""constraints.txt: the version of every Python package of a lock, for those who install more beside it.

It follows from lock.json alone, so a lock lists no digest of it: whoever reads one makes it again and compares.
"""

import re
from collections.abc import Iterator

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from smokehouse.errors import UserError
from smokehouse.locks.model import Lock
from smokehouse.locks.pins import LockFiles

# conda-build gives packages with Python modules such a build: pyhd8ed1ab_0 for every Python, py311h38be061_0 for one.
_PYTHON_BUILD = re.compile(r"(?:.*_)?py(?:h|\d)")


def pins(lock: Lock) -> str:
    """Return a line NAME==VERSION for each Python package of `lock`, those of PyPI first."""
    versions = {canonicalize_name(file.name): file.version for file in lock.pip}
    lines = [f"{file.name}=={file.version}\n" for file in lock.pip]
    lines += [f"{name}=={version}\n" for name, version in _conda(lock) if name not in versions]
    return "".join(lines)


def text(files: LockFiles, lock: Lock) -> str:
    """Return constraints.txt of `lock`."""
    purpose = "# For --constraints of pip and uv: no package that is added changes the version of one of the lock.\n"
    return f"{files.pins.title}{purpose}{pins(lock)}"


def check(files: LockFiles, lock: Lock) -> None:
    """Raise UserError where the constraints.txt in the folder of `lock` is missing or has other content."""
    name = f"{files.name}/{files.constraints.name}"
    try:
        found = files.constraints.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name}: not found; run {files.command}") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken.strerror}); run {files.command}") from None
    if found != text(files, lock).encode():
        raise UserError(f"{name}: expected the versions of the lock, found others; run {files.command}")


def _conda(lock: Lock) -> Iterator[tuple[str, str]]:
    """Yield name and version of the conda packages with Python modules, as far as pip can read the version."""
    for package in lock.conda:
        if _PYTHON_BUILD.match(package.build):
            try:
                yield canonicalize_name(package.name), str(Version(package.version))
            except InvalidVersion:
                continue
