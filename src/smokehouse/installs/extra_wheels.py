"""Extra wheels: wheels that are in no lock, requested by hash with --with, beside the locked ones."""

import csv
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from smokehouse import storage
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.environments import Environment
from smokehouse.errors import UserError
from smokehouse.locks import Lock, LockedFile, markers
from smokehouse.locks.wheel_tags import Artefact, ranking, why_incompatible
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_MAX_METADATA = 16 << 20  # bytes
# How flash-attn and similar projects say what a wheel was compiled for: +cu12torch2.6cxx11abiFALSE, +cu118torch2.0, +cu124.
_COMPILED_FOR = re.compile(r"cu(?P<cuda>\d+)(?:torch(?P<torch>\d+(?:\.\d+)+))?(?:cxx11abi(?P<abi>true|false))?")
# Where torch's wheels say with which C++ ABI they were compiled.
_TORCH_CONFIG = "torch/share/cmake/Torch/TorchConfig.cmake"
_REMEDY = "specify another of its wheels"
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # of a wheel; RECORD does not list itself in each


@dataclass(frozen=True)
class ExtraWheel:
    """A wheel as --with specifies it: its file name, its SHA-256 in hex, and its URL or path. A path has no `url`."""

    name: str
    sha256: str
    source: str
    url: str = ""

    @property
    def text(self) -> str:
        """The wheel in an image's label, where the folder of a file is of no use."""
        return f"{self.url or self.name}#sha256={self.sha256}"

    @property
    def project(self) -> str:
        """The canonical name of its project."""
        return parse_wheel_filename(self.name)[0]

    @property
    def version(self) -> Version:
        """The version in the file name, which can have a local part that the wheel's metadata lack."""
        return parse_wheel_filename(self.name)[1]


@dataclass(frozen=True)
class FetchedWheel:
    """An extra wheel that was downloaded to `path` and fits the lock; `file` is what the lock's entry would be."""

    request: ExtraWheel
    file: LockedFile
    path: Path


def parse(text: str) -> ExtraWheel:
    """Parse URL_OR_FILE#sha256=HEX, as --with takes it; raises UserError."""
    source, _, digest = text.rpartition("#sha256=")
    digest = digest.lower()
    if not source or not re.fullmatch(files.SHA256, digest):
        raise UserError(f"--with {text}: SHA-256 not found; write URL_OR_FILE#sha256=HEX, with HEX from a source you trust")
    url, name = "", Path(source).name
    if "://" in source:
        url, name = source, _name_in_url(source, text)
    if name.endswith((".tar.gz", ".zip")):
        raise UserError(f"--with {name}: expected a wheel, found a source distribution; build a wheel from it, or {_REMEDY}")
    try:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._!+-]*", name):
            raise InvalidWheelFilename(name)
        _, version, *_ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        raise UserError(
            f"--with {name}: invalid name of a wheel; specify a file NAME-VERSION-PYTHON-ABI-PLATFORM.whl"
        ) from None
    if version.is_devrelease:
        raise UserError(f"--with {name}: expected a release, found a development version; specify a release")
    return ExtraWheel(name, digest, source, url)


def _name_in_url(source: str, text: str) -> str:
    """Return the file name at the end of the URL `source`; raises UserError for a URL that a label must not have."""
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise UserError(f"--with {text}: invalid URL ({error}); specify another, or a file") from None
    if not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _THIS_MACHINE)):
        raise UserError(
            f"--with {text}: expected https, or http from this machine, found {parts.scheme}; download it and specify the file"
        )
    if "@" in parts.netloc or parts.query or not re.fullmatch("[!-~]+", source):
        raise UserError(
            f"--with {text}: expected a URL without user, query and spaces, as the image's label will have it; specify another"
        )
    return unquote(parts.path.rpartition("/")[2])


def fetch_wheels(
    checkout: Checkout, requested: Sequence[ExtraWheel], environment: Environment, lock: Lock
) -> tuple[FetchedWheel, ...]:
    """Download wheels to build/with, where earlier calls left some, and check that each fits the lock.

    Requirements of locked packages that depend on an extra are not checked.

    Raises:
        UserError: a wheel is unavailable, or does not fit.
    """
    for wheel in requested:
        _check_name(wheel, environment, lock)
    for project, count in Counter(wheel.project for wheel in requested).items():
        if count > 1:
            raise UserError(f"--with: expected one wheel of {project}, found {count}; keep one")
    paths = _download(checkout, requested)
    metadata = {wheel: _metadata(wheel, path) for wheel, path in paths.items()}
    versions: dict[str, str] = {canonicalize_name(file.name): file.version for file in lock.pip}
    versions |= {wheel.project: version for wheel, (version, _) in metadata.items()}
    for wheel, (_, raw) in metadata.items():
        _check_requirements(wheel, raw, versions, lock)
    return tuple(
        FetchedWheel(
            wheel,
            LockedFile(
                name=wheel.project,
                version=metadata[wheel][0],
                file=wheel.name,
                size=path.stat().st_size,
                sha256=wheel.sha256,
            ),
            path,
        )
        for wheel, path in sorted(paths.items(), key=lambda item: item[0].name)
    )


def _download(checkout: Checkout, requested: Sequence[ExtraWheel]) -> dict[ExtraWheel, Path]:
    """Download what is missing in build/with, and return the path of each wheel."""
    folder = checkout.build / "with"
    paths = {wheel: folder / wheel.sha256 / wheel.name for wheel in requested}
    if paths:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock", "downloading the wheels of --with"):
            missing = [wheel for wheel, path in paths.items() if not files.is_whole(path, wheel.sha256)]
            downloads = [storage.Download(paths[wheel], wheel.source, wheel.sha256, 0, "--with") for wheel in missing]
            storage.fetch(downloads, remedy="check the URL or path and the SHA-256 of --with")
    return paths


def extend_lock(lock: Lock, wheels: Sequence[FetchedWheel]) -> Lock:
    """Return `lock` with extra wheels among its PyPI packages."""
    return lock.model_copy(update={"pip": (*lock.pip, *(wheel.file for wheel in wheels))})


def require_torch_abi(requested: Sequence[ExtraWheel], lock: Lock, wheels: Path) -> None:
    """Raise UserError where an extra wheel was compiled for another C++ ABI than the torch in the folder `wheels`."""
    if any(map(_abi, requested)):
        with zipfile.ZipFile(wheels / _torch(lock).file) as archive:
            found = archive.read(_TORCH_CONFIG) if _TORCH_CONFIG in archive.namelist() else b""
        _require_abi(requested, lock, found)


def require_installed_torch_abi(requested: Sequence[ExtraWheel], lock: Lock, packages: Path) -> None:
    """Raise UserError where an extra wheel was compiled for another C++ ABI than torch in the folder `packages`."""
    if any(map(_abi, requested)):
        config = packages / _TORCH_CONFIG
        _require_abi(requested, lock, config.read_bytes() if config.is_file() else b"")


def _require_abi(requested: Sequence[ExtraWheel], lock: Lock, config: bytes) -> None:
    found = re.search(rb"-D_GLIBCXX_USE_CXX11_ABI=([01])", config)
    has = {b"0": "false", b"1": "true"}[found[1]] if found else "unknown"
    for wheel in requested:
        if (abi := _abi(wheel)) and has != abi:
            raise UserError(
                f"--with {wheel.name}: requires cxx11abi {abi.upper()}, that of {_torch(lock).file} is {has.upper()}; {_REMEDY}"
            )


def _abi(wheel: ExtraWheel) -> str | None:
    return _compiled_for(wheel).get("abi")


def _torch(lock: Lock) -> LockedFile:
    return next(file for file in lock.pip if file.name == "torch")


def _check_name(wheel: ExtraWheel, environment: Environment, lock: Lock) -> None:
    """Raise UserError where a wheel's name alone shows that it does not fit."""
    tags = parse_wheel_filename(wheel.name)[3]
    if not tags & ranking(lock.python, lock.platform).keys():
        artefact = Artefact(wheel.name, "", wheel.sha256, 0)
        found = ", ".join(sorted(map(str, tags)))
        reason = f"expected a wheel for Python {lock.python} on {lock.platform}, found {found}"
        raise UserError(f"--with {wheel.name}: {why_incompatible([artefact], lock.python, lock.platform) or reason}; {_REMEDY}")
    for file in lock.pip:
        if canonicalize_name(file.name) == wheel.project:
            raise UserError(
                f"--with {wheel.name}: {file.name} {file.version} is locked already; drop the option, or lock that version: "
                f"edit environments/{environment.name}/environment.yml and run {as_typed('lock', environment.name)}"
            )
    compiled_for = _compiled_for(wheel)
    cuda = environment.stack.cuda.version
    if digits := compiled_for.get("cuda"):
        # The minor release, which some omit, is one digit: cu12, cu118, cu124.
        major = digits[:-1] if len(digits) > 2 else digits
        if major != cuda.partition(".")[0]:
            raise UserError(f"--with {wheel.name}: requires CUDA {major}, environment has {cuda}; {_REMEDY}")
    if required := compiled_for.get("torch"):
        torch = next((Version(file.version) for file in lock.pip if file.name == "torch"), None)
        release = Version(required).release
        if not torch or torch.release[: len(release)] != release:
            raise UserError(f"--with {wheel.name}: requires torch {required}, lock has {torch or 'none'}; {_REMEDY}")


def _compiled_for(wheel: ExtraWheel) -> dict[str, str]:
    """Return what the local part of a wheel's version says that it was compiled for, by cuda, torch and abi."""
    found = _COMPILED_FOR.fullmatch(wheel.version.local or "")
    return {what: text for what, text in found.groupdict().items() if text} if found else {}


def _metadata(wheel: ExtraWheel, path: Path) -> tuple[str, RawMetadata]:
    """Return the version that a wheel is installed as, and its metadata; raises UserError where they do not fit its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            [info] = {name.split("/")[0] for name in archive.namelist() if name.split("/")[0].endswith(".dist-info")}
            _check_members(wheel, archive, info)
            member = archive.getinfo(f"{info}/METADATA")
            if member.file_size > _MAX_METADATA:
                raise ValueError(f"{member.file_size} bytes of metadata")
            raw, _ = parse_email(archive.read(member))
        name, _, version = info.removesuffix(".dist-info").partition("-")
        # Wheels of flash-attn have the local part in the file name only.
        # See: https://github.com/Dao-AILab/flash-attention/issues/730
        expected = (str(wheel.version), wheel.version.public)
        fits = Version(version) == Version(raw["version"]) and str(Version(version)) in expected
        if not fits or {canonicalize_name(name), canonicalize_name(raw["name"])} != {wheel.project}:
            raise UserError(
                f"--with {wheel.name}: expected metadata of {wheel.project} {wheel.version}, found {name} {version}; "
                "correct the file name"
            )
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"--with {wheel.name}: invalid wheel ({error}); specify another file") from None
    return version, raw


def _check_members(wheel: ExtraWheel, archive: zipfile.ZipFile, info: str) -> None:
    """Raise UserError where a wheel has files that its RECORD does not list, or that belong to other packages."""
    record = archive.getinfo(f"{info}/RECORD")
    if record.file_size > _MAX_METADATA:
        raise ValueError(f"{record.file_size} bytes of RECORD")
    listed = {row[0] for row in csv.reader(archive.read(record).decode("utf-8").splitlines()) if row}
    data = f"{info.removesuffix('.dist-info')}.data/"
    seen: set[str] = set()
    for name in (member.filename for member in archive.infolist() if not member.is_dir()):
        place, kind = name, "purelib"
        if name.startswith(data):
            kind, _, place = name.removeprefix(data).partition("/")
        parts = PurePosixPath(place).parts
        first = parts[0] if parts else ""
        other = first.endswith(".dist-info") and first != info
        if other or ".." in parts or place.startswith("/") or (kind == "data" and first in ("bin", "lib", "lib64")):
            raise UserError(f"--with {wheel.name}: expected files of its own, found {name!r}; do not trust this wheel")
        if name in seen or (name not in listed and name.rpartition("/")[2] not in _UNLISTED):
            problem = "listed once in its RECORD"
            raise UserError(f"--with {wheel.name}: expected each file {problem}, found {name!r}; do not trust this wheel")
        seen.add(name)


def _check_requirements(wheel: ExtraWheel, raw: RawMetadata, versions: dict[str, str], lock: Lock) -> None:
    """Raise UserError where `versions` do not meet what a wheel requires on Linux with the Python of the lock."""
    python, machine = markers.python_version(lock), {**markers.of(lock), "extra": ""}
    try:
        if python not in SpecifierSet(required := raw.get("requires_python", "")):
            raise UserError(f"--with {wheel.name}: requires Python {required}, lock has {python}; {_REMEDY}")
        for requirement in map(Requirement, raw.get("requires_dist", [])):
            name, specifier = requirement.name, requirement.specifier
            version = versions.get(canonicalize_name(name))
            if requirement.marker and not requirement.marker.evaluate(machine):
                continue
            if version is None:
                raise UserError(
                    f"--with {wheel.name}: requires {name}{specifier}, lock has no such package; "
                    f"add a wheel of {name} with --with"
                )
            if not specifier.contains(version, prereleases=True):
                raise UserError(f"--with {wheel.name}: requires {name}{specifier}, found {version}; {_REMEDY}")
    except (InvalidRequirement, InvalidSpecifier, InvalidVersion) as error:
        raise UserError(f"--with {wheel.name}: invalid dependency metadata ({error}); {_REMEDY}") from None
