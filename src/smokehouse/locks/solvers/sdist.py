"""Read the build requirements of source distributions, without running or unpacking them."""

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

_LARGEST = 256 << 20  # bytes of an sdist
_LARGEST_UNPACKED = 4 << 30
_LARGEST_PYPROJECT = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte

# The default of PEP 518, for an sdist without build-system.requires.
_DEFAULT = ["setuptools>=40.8.0"]


def build_requirements(sdist: Artefact) -> list[Requirement]:
    """Return the build requirements of `sdist`, from the cache or from a download; raises UserError."""
    cached = files.cache() / "build-requires" / f"{sdist.sha256}.json"
    try:
        declared = json.loads(cached.read_text())
    except (OSError, ValueError):
        declared = _declared(_download(sdist), sdist.name)
        with suppress(OSError):  # without a cache, the next call downloads it again
            files.write(cached, json.dumps(declared))
    return [_parse(text, sdist.name) for text in declared]


def _download(sdist: Artefact) -> bytes:
    if urlsplit(sdist.url).scheme not in ("https", "http", "file"):
        raise UserError(f"{sdist.name}: expected an https, http or file URL, found {sdist.url}; use another index")
    try:
        with urllib.request.urlopen(sdist.url, timeout=_TIMEOUT) as response:
            data: bytes = response.read(_LARGEST + 1)
    except OSError as broken:
        raise UserError(f"{sdist.name}: cannot be downloaded ({broken}); check the network") from None
    if len(data) > _LARGEST:
        raise UserError(f"{sdist.name}: expected at most {_LARGEST >> 20} MiB, found more; add it to left_out in stack.toml")
    if sha256(data) != sdist.sha256:
        raise UserError(f"{sdist.name}: expected SHA-256 {sdist.sha256}, the index serves another file; use another index")
    return data


def _declared(data: bytes, name: str) -> list[str]:
    """Return `build-system.requires` of the sdist `data`."""
    try:
        text = _pyproject(data, name)
        if text is None:
            return _DEFAULT
        requires = tomllib.loads(text.decode()).get("build-system", {"requires": _DEFAULT})["requires"]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, LookupError, RecursionError) as broken:
        raise UserError(f"{name}: invalid source distribution ({broken}); pin another version") from None
    if not isinstance(requires, list) or not all(isinstance(text, str) for text in requires):
        raise UserError(f"{name}: build-system.requires: expected a list of text; pin another version")
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
                raise ValueError(f"expected at most {_LARGEST_UNPACKED >> 30} GiB unpacked, found more")
            if member.isfile() and member.name.count("/") == 1 and member.name.endswith("/pyproject.toml"):
                content = tar.extractfile(member)
                return _capped(content.read(_LARGEST_PYPROJECT + 1)) if content else None
    return None


def _capped(text: bytes) -> bytes:
    if len(text) > _LARGEST_PYPROJECT:
        raise ValueError(f"pyproject.toml: expected at most {_LARGEST_PYPROJECT >> 20} MiB, found more")
    return text


def _parse(text: str, name: str) -> Requirement:
    try:
        return parse(text.strip())
    except ValueError as wrong:
        raise UserError(f"{name}: build-system.requires: {wrong}") from None
