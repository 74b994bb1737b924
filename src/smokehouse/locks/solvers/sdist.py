"""Source distributions: what it takes to build one, read without running or unpacking it."""

import io
import json
import tarfile
import tomllib
import urllib.request
import zipfile
from contextlib import suppress
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from smokehouse.environments.requirement import parse
from smokehouse.errors import UserError
from smokehouse.locks.wheel_tags import Artefact
from smokehouse.storage import files
from smokehouse.storage.files import sha256

_LARGEST = 256 << 20  # bytes of an sdist; the largest known are test data
_LARGEST_UNPACKED = 4 << 30
_LARGEST_PYPROJECT = 1 << 20
_PATIENCE = 60.0  # seconds without a byte

# What uv and pip build with where an sdist does not say.
_DEFAULT = ["setuptools>=40.8.0"]


def build_requirements(sdist: Artefact) -> list[Requirement]:
    """Return the build requirements of `sdist`, downloaded where its hash is not known yet; raises UserError."""
    known = files.cache() / "build-requires" / f"{sdist.sha256}.json"
    try:
        declared = json.loads(known.read_text())
    except (OSError, ValueError):
        declared = _declared(_download(sdist), sdist.name)
        with suppress(OSError):  # a cache that cannot be written costs a download the next time, and no more
            files.write(known, json.dumps(declared))
    return [_parse(text, sdist.name) for text in declared]


def _download(sdist: Artefact) -> bytes:
    if urlsplit(sdist.url).scheme not in ("https", "http", "file"):
        raise UserError(f"{sdist.name}: cannot be fetched from {sdist.url}; use an index that serves files over https")
    try:
        with urllib.request.urlopen(sdist.url, timeout=_PATIENCE) as response:
            data: bytes = response.read(_LARGEST + 1)
    except OSError as broken:
        raise UserError(f"{sdist.name}: cannot be downloaded ({broken}); check the network") from None
    if len(data) > _LARGEST:
        raise UserError(f"{sdist.name}: larger than {_LARGEST >> 20} MiB; leave it out in stack.toml")
    if sha256(data) != sdist.sha256:
        raise UserError(f"{sdist.name}: the index serves another file than it names; use another index")
    return data


def _declared(data: bytes, name: str) -> list[str]:
    """Return `build-system.requires` of the sdist `data`."""
    try:
        text = _pyproject(data, name)
        if text is None:
            return _DEFAULT
        requires = tomllib.loads(text.decode()).get("build-system", {"requires": _DEFAULT})["requires"]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, LookupError, RecursionError) as broken:
        raise UserError(f"{name}: not a readable source distribution ({broken}); pin another version") from None
    if not isinstance(requires, list) or not all(isinstance(text, str) for text in requires):
        raise UserError(f"{name}: build-system.requires is no list of text; pin another version")
    return requires


def _pyproject(data: bytes, name: str) -> bytes | None:
    """Return pyproject.toml from the top folder of the sdist `data`, None where there is none."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.filename.count("/") == 1 and entry.filename.endswith("/pyproject.toml"):
                    with archive.open(entry) as file:
                        return _capped(file.read(_LARGEST_PYPROJECT + 1))
        return None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if tar.offset > _LARGEST_UNPACKED:
                raise ValueError(f"it unpacks to more than {_LARGEST_UNPACKED >> 30} GiB")
            if member.isfile() and member.name.count("/") == 1 and member.name.endswith("/pyproject.toml"):
                content = tar.extractfile(member)
                return _capped(content.read(_LARGEST_PYPROJECT + 1)) if content else None
    return None


def _capped(text: bytes) -> bytes:
    if len(text) > _LARGEST_PYPROJECT:
        raise ValueError(f"its pyproject.toml is larger than {_LARGEST_PYPROJECT >> 20} MiB")
    return text


def _parse(text: str, name: str) -> Requirement:
    try:
        return parse(text.strip())
    except ValueError as wrong:
        raise UserError(f"{name}: build-system.requires: {wrong}") from None
