"""Compare the files of a lock with each other and with their environment, as if somebody had edited them with care.

Whoever changes requirements.txt and computes all digests again gets through every comparison of digests. So each file is read
under a closed grammar, with the values that the others and the environment give, and no line is left over.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from smokehouse.environments.definition import Environment
from smokehouse.environments.inputs import package_name
from smokehouse.errors import UserError
from smokehouse.locks import conda_lock_yml
from smokehouse.locks.model import CondaPackage, Lock, LockedFile
from smokehouse.locks.pins import LockFiles, Pins, build_header, parse_body, pins_header
from smokehouse.locks.wheel_tags import ranking

_MD5 = re.compile(r"[0-9a-f]{32}")
_PACKAGE_KEYS = ["name", "version", "manager", "platform", "dependencies", "url", "hash", "category", "optional"]


def require_plain(files: LockFiles, platforms: Sequence[str] = ()) -> None:
    """Raise UserError where the folder of a lock or a file in it is a link, a pipe or anything but a folder and files.

    Folders are those of further `platforms` only.
    """
    fix = f"restore it with git, or remove it and run {files.command}"
    try:
        if not stat.S_ISDIR(files.folder.lstat().st_mode):
            raise UserError(f"{files.name}: expected a folder, found a link or another file; {fix}")
        with os.scandir(files.folder) as entries:
            strange = sorted(
                entry.name
                for entry in entries
                if not entry.is_file(follow_symlinks=False)
                and not (entry.name in platforms and entry.is_dir(follow_symlinks=False))
            )
    except FileNotFoundError:
        return  # which the reader says in its own words
    if strange:
        raise UserError(f"{files.name}/{strange[0]}: expected a file, found a link, folder or pipe; {fix}")


def require_same(environment: Environment, files: LockFiles, lock: Lock, pins: Pins) -> None:
    """Raise UserError where the files of a lock differ from each other or from the environment that they are of.

    `pins` is requirements.txt as read.
    """
    for problem in (
        *_header(environment, files, lock),
        *_pypi(environment, files, lock),
        *_requirers(environment, lock, pins),
        *_conda_lock(environment, files, lock),
    ):
        raise UserError(f"{files.name}/{problem}; restore it with git, or run {files.command}")


def _header(environment: Environment, files: LockFiles, lock: Lock) -> Iterator[str]:
    """Yield how lock.json differs from the environment's inputs, and from how it is written."""
    inputs, conda = environment.inputs, environment.conda
    virtual = {name: version if build == "0" else f"{version} {build}" for name, (version, build) in conda.virtual}
    for what, expected, found in (
        ("environment", environment.name, lock.environment),
        ("python", inputs.python, lock.python),
        ("platform", inputs.platform, lock.platform),
        ("cutoff", inputs.cutoff, lock.cutoff),
        ("channel", conda.channel, lock.channel.name),
        ("virtual_packages", virtual, lock.virtual_packages),
        ("files", {files.pins.path.name, files.build_pins.name, files.conda_lock.name}, {*lock.files}),
    ):
        if expected != found:
            yield f"lock.json: {what}: expected {_shown(expected)}, found {_shown(found)}"
    try:
        written = lock.text()
    except ValueError:  # of half a surrogate pair
        written = ""
    if files.lock_json.read_text("utf-8") != written:
        yield "lock.json: expected the form that it is generated in, found another one"
    for package in lock.conda:
        if package.subdir not in (conda.subdir, "noarch"):
            yield f"lock.json: {package.name}: expected a package for {conda.subdir} or noarch, found {package.subdir}"
        if package.file.rpartition(f"-{package.version}-{package.build}.")[0] != package.name:
            yield f"lock.json: {package.name}: expected a file of version {package.version}, found {package.file}"
    for file in (*lock.pip, *lock.build):
        if not _is_of(file):
            yield f"lock.json: {file.name}: expected a wheel or sdist of version {file.version}, found {file.file}"
    ranks = ranking(lock.python, lock.platform)
    for file in (*lock.pip, *lock.build):
        if file.file.endswith(".whl") and not parse_wheel_filename(file.file)[3] & ranks.keys():
            expected = f"a wheel for Python {lock.python} on {lock.platform}"
            yield f"lock.json: {file.name}: expected {expected}, found {file.file}"


def _shown(value: object) -> str:
    text = ", ".join(sorted(map(str, value))) if isinstance(value, set) else str(value)
    return text[:120] or "none"


def _is_of(file: LockedFile) -> bool:
    """Return whether the name of a file is that of a wheel or source distribution of its package and version."""
    try:
        name, version = parse_wheel_filename(file.file)[:2] if file.file.endswith(".whl") else parse_sdist_filename(file.file)
        return name == canonicalize_name(file.name) and version == Version(file.version)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return False


def _pypi(environment: Environment, files: LockFiles, lock: Lock) -> Iterator[str]:
    """Yield how the requirements files differ from lock.json."""
    for path, locked in ((files.pins.path, lock.pip), (files.build_pins, lock.build)):
        found = [(pin.name, pin.version, pin.marker, pin.hashes) for pin in parse_body(path.read_text("utf-8"), path.name)]
        expected = [(file.name, file.version, "", (file.sha256,)) for file in locked]
        for one, other in zip(expected, found, strict=False):
            if one != other:
                yield f"{path.name}: expected {one[0]}=={one[1]} with its hash in lock.json, found {other[0]}=={other[1]}"
        if len(expected) != len(found):
            yield f"{path.name}: expected the {len(expected)} packages of lock.json, found {len(found)}"
    size = sum(file.size for file in lock.pip)
    headers = {
        files.pins.path: pins_header(environment.inputs, files.pins, size),
        files.build_pins: build_header(files.pins),
    }
    for path, header in headers.items():
        found_header = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
        if [line for line in found_header if not line.startswith("# content: ")] != header.splitlines():
            yield f"{path.name}: expected the header that it is generated with, found another one"


def _requirers(environment: Environment, lock: Lock, pins: Pins) -> Iterator[str]:
    """Yield the packages that are said to be there for one which is not."""
    known = {canonicalize_name(file.name) for file in (*lock.pip, *lock.build, *lock.conda)}
    for name, requirers in pins.via.items():
        for requirer in requirers:
            if requirer != environment.inputs.file and canonicalize_name(requirer.partition("[")[0]) not in known:
                yield f"requirements.txt: {name}: expected {requirer}, which requires it, in the lock, found no such package"


def _conda_lock(environment: Environment, files: LockFiles, lock: Lock) -> Iterator[str]:
    """Yield how conda-lock.yml differs from lock.json and the environment, and from how it is written."""
    name, conda = files.conda_lock.name, environment.conda
    text = files.conda_lock.read_text("utf-8")
    try:
        content = yaml.load(text, yaml.CSafeLoader)
        written = conda_lock_yml.dump(files.pins.title, content)
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError, KeyError):
        yield f"{name}: expected the form that it is generated in, found other YAML"
        return
    if text != written:
        yield f"{name}: expected the form that it is generated in, found another one"
    head = conda_lock_yml.head(conda, environment.inputs.requirements, files.sources(environment))
    for key, expected in head.items():
        if content.get(key) != expected:
            yield f"{name}: {key}: expected what {conda.file} gives, found other values"
    if [*content] != [*head, "package"] or not isinstance(content["package"], list):
        yield f"{name}: expected the keys {', '.join([*head, 'package'])}, found {', '.join(map(str, content))}"
        return
    found = content["package"]
    if len(found) != len(lock.conda):
        yield f"{name}: expected the {len(lock.conda)} packages of lock.json, found {len(found)}"
    known = {package.name for package in lock.conda}
    for package, entry in zip(lock.conda, found, strict=False):
        yield from (f"{name}: {package.name}: {problem}" for problem in _package(package, entry, lock, conda.subdir, known))
    if missing := [spec for spec in conda.specs if package_name(spec) not in known]:
        yield f"lock.json: {conda.file} requires {missing[0]}, lock has no such conda package"


def _package(package: CondaPackage, entry: Any, lock: Lock, subdir: str, known: set[str]) -> Iterator[str]:
    """Yield how the entry of a package in conda-lock.yml differs from lock.json."""
    if not isinstance(entry, Mapping) or [*entry] != _PACKAGE_KEYS:
        yield f"expected the keys {', '.join(_PACKAGE_KEYS)}, found others"
        return
    digests = entry["hash"] if isinstance(entry["hash"], Mapping) else {}
    expected = {
        "name": package.name,
        "version": package.version,
        "manager": "conda",
        "platform": subdir,
        "dependencies": entry["dependencies"],
        "url": f"{lock.channel_url}/{package.path}",
        "hash": {"md5": digests.get("md5"), "sha256": package.sha256},
        "category": package.category,
        "optional": package.category != "main",
    }
    if wrong := [key for key in _PACKAGE_KEYS if entry[key] != expected[key]]:
        yield f"{wrong[0]}: expected {_shown(expected[wrong[0]])} from lock.json, found {_shown(entry[wrong[0]])}"
    if not _MD5.fullmatch(str(digests.get("md5"))):
        yield "hash.md5: expected 32 hexadecimal digits, found others"
    needed = entry["dependencies"] if isinstance(entry["dependencies"], Mapping) else {"dependencies": ""}
    if missing := [name for name in needed if not str(name).startswith("__") and name not in known]:
        yield f"expected {missing[0]}, which it requires, in the lock, found no such package"
