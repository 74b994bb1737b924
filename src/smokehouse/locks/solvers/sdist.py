"""Read the build system of source distributions, without running them."""

import io
import json
import re
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement

from smokehouse.environments.requirement import parse
from smokehouse.errors import UserError
from smokehouse.locks.solvers import UnsolvableError
from smokehouse.locks.wheel_tags import Artefact
from smokehouse.storage import files
from smokehouse.storage.files import sha256
from smokehouse.storage.transfer import DOWNLOAD, Client, Limits, TransferError

_LARGEST = 256 << 20  # bytes of an sdist
_LARGEST_UNPACKED = 4 << 30
_LARGEST_PYPROJECT = 1 << 20
_CHUNK = 1 << 20

_LARGEST_TO_BUILD = 1 << 30  # bytes, unpacked
_MOST_MEMBERS = 50_000


@dataclass(frozen=True)
class BuildSystem:
    """The table `build-system` of pyproject.toml: requirements, the backend as module:object, and where it is in the sdist.

    See: PEP 517.
    """

    requires: tuple[str, ...]
    backend: str
    backend_path: tuple[str, ...]


# For an sdist without a table. See: PEP 518, and PEP 517 for the backend.
_DEFAULT = BuildSystem(("setuptools>=40.8.0",), "setuptools.build_meta:__legacy__", ())


def build_requirements(sdist: Artefact) -> list[Requirement]:
    """Return the build requirements of `sdist`, from the cache or from a download; raises UserError."""
    cached = files.cache() / "build-requires" / f"{sdist.sha256}.json"
    try:
        declared = json.loads(cached.read_text())
    except (OSError, ValueError):
        declared = build_system(download(sdist), sdist.name).requires
        with suppress(OSError):  # without a cache, the next call downloads it again
            files.write(cached, json.dumps(declared))
    return [parse_build_requirement(text, sdist.name) for text in declared]


def unbuildable(pin: str, reason: str) -> UnsolvableError:
    """Return the error for the package `pin`, of which there is only an sdist that cannot be built, for a `reason`."""
    if missing := re.search(r"No module named '([\w.]+)'", reason):
        module = missing[1].partition(".")[0]
        found = f"found one whose build imports {module}, which its build-system.requires does not list"
    else:
        found = f"found one whose build fails: {reason or 'without a message'}"
    return UnsolvableError(
        f"{pin}: expected an sdist that is built with its build-system.requires alone, {found}; remove it, and add a wheel of "
        f"it with --with WHEEL#sha256=HEX, or require a version that has a wheel"
    )


def download(sdist: Artefact, limits: Limits = DOWNLOAD) -> bytes:
    """Return the bytes of `sdist`, verified by their hash; raises UserError."""
    if urlsplit(sdist.url).scheme not in ("https", "http", "file"):
        raise UserError(f"{sdist.name}: expected an https, http or file URL, found {sdist.url}; use another index")
    try:
        data = b"".join(_chunks(sdist, limits))
    except (TransferError, OSError) as broken:
        raise UserError(f"{sdist.name}: cannot be downloaded ({broken}); check the network") from None
    if len(data) > _LARGEST:
        raise UserError(f"{sdist.name}: expected at most {_LARGEST >> 20} MiB, found more; add it to left_out in stack.toml")
    if sha256(data) != sdist.sha256:
        raise UserError(f"{sdist.name}: expected SHA-256 {sdist.sha256}, the index serves another file; use another index")
    return data


def _chunks(sdist: Artefact, limits: Limits) -> Iterator[bytes]:
    """Yield the bytes of `sdist`, and few more than are allowed; raises TransferError or OSError."""
    left = _LARGEST + 1
    with ExitStack() as stack:
        if urlsplit(sdist.url).scheme == "file":
            file = stack.enter_context(files.open_regular(Path(unquote(urlsplit(sdist.url).path))))
            chunks = iter(partial(file.read, _CHUNK), b"")
        else:
            client = stack.enter_context(closing(Client(limits)))
            answer = stack.enter_context(client.ask("GET", sdist.url))
            if answer.status != 200:
                raise TransferError(f"status {answer.status} {answer.reason}")
            chunks = answer.chunks()
        for chunk in chunks:
            yield chunk
            left -= len(chunk)
            if left <= 0:
                return


def build_system(data: bytes, name: str) -> BuildSystem:
    """Return the build system of the sdist `data`, called `name` in messages, by default as in PEP 518; raises UserError."""
    try:
        text = _pyproject(data, name)
        table = tomllib.loads(text.decode() if text else "").get("build-system", {"requires": [*_DEFAULT.requires]})
        requires = table["requires"]
        backend, path = table.get("build-backend", _DEFAULT.backend), table.get("backend-path", [])
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as broken:
        raise UserError(f"{name}: invalid source distribution ({broken}); pin another version") from None
    for key, values in (("requires", requires), ("backend-path", path), ("build-backend", [backend])):
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            raise UserError(f"{name}: build-system.{key}: expected a list of text; pin another version")
    if not re.fullmatch(r"\w+(\.\w+)*(:\w+(\.\w+)*)?", backend):
        raise UserError(f"{name}: build-system.build-backend: expected module:object, found {backend!r}; pin another version")
    return BuildSystem(tuple(requires), backend, tuple(path))


def unpack(data: bytes, name: str, folder: Path) -> Path:
    """Unpack the sdist `data`, called `name` in messages, into `folder` and return its top folder; raises UserError.

    No member may lie outside of it, and neither their number nor their size may fill the disk.
    """
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _check_size(entry.file_size for entry in archive.infolist())
                archive.extractall(folder)  # noqa: S202 - it removes .. and leading slashes, and knows no links
        else:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                _check_size((member.size for member in tar), lambda: tar.offset)
                tar.extractall(folder, filter="data")
        [top] = folder.iterdir()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, RecursionError, NotImplementedError) as broken:
        raise UserError(f"{name}: invalid source distribution ({broken}); pin another version") from None
    return top


def _check_size(sizes: Iterable[int], position: Callable[[], int] = lambda: 0) -> None:
    """Raise ValueError for an archive with too many members, or too large ones; `position` is in the unpacked archive."""
    total = 0
    for count, size in enumerate(sizes, 1):
        total += size
        if max(total, position()) > _LARGEST_TO_BUILD or count > _MOST_MEMBERS:
            raise ValueError(f"expected at most {_MOST_MEMBERS} files and {_LARGEST_TO_BUILD >> 30} GiB unpacked, found more")


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


def parse_build_requirement(text: str, name: str) -> Requirement:
    """Return a build requirement of the sdist `name`; raises UserError."""
    try:
        return parse(text.strip())
    except ValueError as wrong:
        raise UserError(f"{name}: build-system.requires: {wrong}") from None
