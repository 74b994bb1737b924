"""The state of an installed environment: which packages it has, how they drifted from the lock, which files are damaged.

See: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

import base64
import csv
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from smokehouse.installs.loader import NAME as LOADER
from smokehouse.locks import CondaPackage, Lock
from smokehouse.storage import files

_CONDA_META = "conda-meta"
_CONDA_PACKAGE = "conda package "
_UNREADABLE = -1  # in place of the size of a RECORD that is none


@dataclass(frozen=True)
class Distribution:
    """An installed Python package: its canonical name, version and .dist-info folder."""

    name: str
    version: str
    info: Path

    @property
    def is_removable(self) -> bool:
        """Whether it lists its files and its metadata agree with its name, without which no installer can remove it."""
        try:
            found = re.search(r"^Version: *(\S+)", files.read(self.info / "METADATA").decode(), re.MULTILINE)
        except (OSError, ValueError):
            return False
        return (self.info / "RECORD").is_file() and found is not None and _same(found[1], self.version)


@dataclass(frozen=True)
class Drift:
    """A package that differs from the lock: `locked` and `found` are versions, empty where it is not there."""

    package: str
    locked: str
    found: str

    @property
    def is_conda(self) -> bool:
        """Whether it is a conda package."""
        return self.package.startswith(_CONDA_PACKAGE)

    @property
    def text(self) -> str:
        """The difference as a sentence that begins with the package."""
        return f"{self.package}: {self.what}"

    @property
    def what(self) -> str:
        """The difference without the package."""
        if not self.found:
            return f"expected {self.locked}, not installed"
        if not self.locked:
            return f"{self.found} is installed, not in the lock"
        return f"expected {self.locked}, found {self.found}"


@dataclass(frozen=True)
class Damage:
    """A file of a package that is not as the package recorded it; `path` is absolute."""

    package: str
    path: Path
    problem: str


@dataclass(frozen=True)
class _Expected:
    """A file as a package recorded it; `size` and `sha256` (hex) are None where they are not recorded."""

    package: str
    size: int | None
    sha256: str | None
    link: bool = False


def site_packages(folder: Path, python: str) -> Path:
    """Return the folder of the Python packages of an environment of `python`, such as 3.11."""
    return folder / "lib" / f"python{python}" / "site-packages"


def distributions(folder: Path, python: str) -> list[Distribution]:
    """Return the Python packages in an environment, sorted by name."""
    found = []
    for info in site_packages(folder, python).glob("*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found.append(Distribution(canonicalize_name(name), version, info))
    return sorted(found, key=lambda one: (one.name, one.version))


def drift(
    folder: Path, lock: Lock, conda: Sequence[CondaPackage], added: Mapping[str, str], *, with_loader: bool = False
) -> list[Drift]:
    """Return how the packages in an environment differ from `lock`, its packages of `conda`, and the versions `added` to it.

    The loader, which no lock has, is no difference, but `with_loader`.
    """
    records = {record["name"]: f"{record['version']}-{record['build']}" for _, record in _conda_records(folder)}
    required = {package.name: f"{package.version}-{package.build}" for package in conda}
    found = [
        Drift(f"{_CONDA_PACKAGE}{name}", required.get(name, ""), records.get(name, ""))
        for name in sorted(required.keys() | records.keys())
        if required.get(name) != records.get(name)
    ]
    versions: dict[str, str] = {canonicalize_name(file.name): file.version for file in lock.pip} | dict(added)
    by_conda = {path.parts[-2] for path, _ in _conda_files(folder) if path.name == "METADATA"}
    seen = set()
    for one in distributions(folder, lock.python):
        if one.name not in versions and (one.info.name in by_conda or (one.name == LOADER and not with_loader)):
            continue
        if one.name in seen or not _same(one.version, versions.get(one.name, "")):
            found.append(Drift(one.name, versions.get(one.name, ""), one.version))
        seen.add(one.name)
    found += [Drift(name, version, "") for name, version in sorted(versions.items()) if name not in seen]
    return found


def damage(folder: Path, python: str, *, contents: bool) -> list[Damage]:
    """Return the files in an environment that are missing, links where they must not be, of another size or content.

    Without `contents`, which takes a second for each GB, files are not read. Bytecode is left out: Python makes it again.
    """
    expected: dict[Path, list[_Expected]] = {}
    for path, one in (*_conda_files(folder), *_pypi_files(folder, python)):
        if path.suffix != ".pyc":
            expected.setdefault(path, []).append(one)

    def wrong(item: tuple[Path, list[_Expected]]) -> Damage | None:
        path, owners = item
        problems = [_problem(path, owner, contents=contents) for owner in owners]
        # Packages overwrite files of each other, with conda's among them: one of them wrote the file.
        return None if None in problems else Damage(owners[-1].package, path, str(problems[-1]))

    if not contents:
        return [found for found in map(wrong, expected.items()) if found]
    with ThreadPoolExecutor() as threads:
        return [found for found in threads.map(wrong, expected.items()) if found]


def unlisted(folder: Path, python: str, own: Iterable[str]) -> list[str]:
    """Return the files in site-packages that no package lists, as paths in `folder`; `own` are those of Smokehouse there.

    Python imports them like any other, and runs some when it starts. Bytecode is left out.
    """
    packages = site_packages(folder, python)
    known = {path for path, _ in (*_conda_files(folder), *_pypi_files(folder, python))} | {packages / name for name in own}
    found = (Path(place, name) for place, _, names in os.walk(packages) for name in names)
    return sorted(str(path.relative_to(folder)) for path in found if path.suffix != ".pyc" and path not in known)


def _same(version: str, other: str) -> bool:
    try:
        return Version(version) == Version(other)
    except InvalidVersion:
        return version == other


def _problem(path: Path, expected: _Expected, *, contents: bool) -> str | None:
    try:
        found = path.lstat()
    except (OSError, ValueError):  # as of a name with a null character
        return "not found"
    if expected.link:
        return None if stat.S_ISLNK(found.st_mode) else "expected a link"
    if not stat.S_ISREG(found.st_mode):
        return "expected a file, found a link" if stat.S_ISLNK(found.st_mode) else "expected a file"
    if expected.size == _UNREADABLE:
        return "expected a list of the package's files and of itself, found another"
    if expected.size is not None and found.st_size != expected.size:
        return f"expected {expected.size} bytes, found {found.st_size}"
    if contents and expected.sha256 and (digest := files.hashed(path)) != expected.sha256:
        return f"expected SHA-256 {expected.sha256}, found {digest}"
    return None


def _pypi_files(folder: Path, python: str) -> Iterator[tuple[Path, _Expected]]:
    packages = site_packages(folder, python)
    for one in distributions(folder, python):
        try:
            rows = list(csv.reader(files.read(one.info / "RECORD").decode().splitlines()))
        except (OSError, ValueError, csv.Error):
            yield one.info / "RECORD", _Expected(one.name, _UNREADABLE, None)
            continue
        if f"{one.info.name}/RECORD" not in {row[0] for row in rows if row}:  # it lists itself, unless it was cut or emptied
            yield one.info / "RECORD", _Expected(one.name, _UNREADABLE, None)
        for row in rows:
            if len(row) != 3:
                yield one.info / "RECORD", _Expected(one.name, _UNREADABLE, None)
                break
            path = Path(os.path.normpath(packages / row[0]))
            if path == one.info / "RECORD":  # it has no hash of itself, whatever a careless build wrote
                yield path, _Expected(one.name, None, None)
                continue
            size = int(row[2]) if re.fullmatch("[0-9]{1,18}", row[2]) else None
            yield path, _Expected(one.name, size, _sha256(row[1]))


def _sha256(hashed: str) -> str | None:
    """Return the SHA-256 in a row of RECORD in hex, None where it has none; what is another is a hash that no file has."""
    algorithm, _, digest = hashed.partition("=")
    try:
        if not hashed:
            return None
        return base64.urlsafe_b64decode(f"{digest}==").hex() or "none" if algorithm == "sha256" else "none"
    except ValueError:
        return "none"


def _conda_records(folder: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    for path in sorted((folder / _CONDA_META).glob("*.json")):
        try:
            record = {"name": path.stem, "version": "?", "build": "?", **json.loads(files.read(path))}
            _require_paths(record)
        except (OSError, ValueError, TypeError, RecursionError):
            record = {"name": path.stem, "version": "?", "build": "?"}
        yield path, record


def _require_paths(record: Mapping[str, Any]) -> None:
    """Raise ValueError where the record of a conda package does not list its files as conda does."""
    paths = record.get("paths_data")
    entries = paths.get("paths") if isinstance(paths, dict) else None
    kinds = {"_path": str, "path_type": str, "sha256": str, "sha256_in_prefix": str, "size_in_bytes": int}
    if not isinstance(entries, list) or not isinstance(record["name"], str):
        raise ValueError("no list of files")
    for entry in entries:
        values = [(entry.get(name), kind) for name, kind in kinds.items()] if isinstance(entry, dict) else []
        if not values or not entry.get("_path") or any(value is not None and type(value) is not kind for value, kind in values):
            raise ValueError("no file")


def _conda_files(folder: Path) -> Iterator[tuple[Path, _Expected]]:
    for _, record in _conda_records(folder):
        for entry in record.get("paths_data", {}).get("paths", []):  # none of a record that is not conda's
            kind = entry.get("path_type") or "hardlink"
            if kind not in ("hardlink", "softlink"):
                continue
            # The prefix in a file changes its size, which is not recorded.
            has_prefix = bool(entry.get("prefix_placeholder"))
            size = None if has_prefix else entry.get("size_in_bytes")
            sha256 = entry.get("sha256_in_prefix") or (None if has_prefix else entry.get("sha256"))
            yield folder / entry["_path"], _Expected(record["name"], size, sha256, link=kind == "softlink")
