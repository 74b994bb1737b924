"""Additions: wheels that no lock names, given with their hash to go into an image beside those of its lock."""

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from smokehouse.checkout import Checkout
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks.model import Lock, LockedFile
from smokehouse.locks.wheel_tags import Artefact, ranking, why_incompatible
from smokehouse.storage.download import Download, fetch, is_whole
from smokehouse.storage.files import SHA256
from smokehouse.storage.folder_lock import exclusive

LABEL = "io.smokehouse.with"

_HERE = ("localhost", "127.0.0.1", "::1")
_METADATA = 16 << 20  # bytes
# How flash-attn and its kin name what they were compiled for: +cu12torch2.6cxx11abiFALSE, +cu118torch2.0cxx11abiTRUE, +cu124.
_COMPILED_FOR = re.compile(r"cu(?P<cuda>\d+)(?:torch(?P<torch>\d+(?:\.\d+)+))?(?:cxx11abi(?P<abi>true|false))?")
# Where torch's wheels say with which C++ ABI they were compiled, for who compiles against them.
_TORCH_CONFIG = "torch/share/cmake/Torch/TorchConfig.cmake"


@dataclass(frozen=True)
class ExtraWheel:
    """A wheel as --with names it: its file name, its SHA-256, and the URL or path that it is at. A path has no `url`."""

    name: str
    sha256: str
    source: str
    url: str = ""

    @property
    def text(self) -> str:
        """How an image's label names it; where it was a file matters to nobody else."""
        return f"{self.url or self.name}#sha256={self.sha256}"

    @property
    def project(self) -> str:
        """The canonical name of what it is a wheel of."""
        return parse_wheel_filename(self.name)[0]

    @property
    def version(self) -> Version:
        """The version in the file name, which can have a local part that the wheel's metadata lack."""
        return parse_wheel_filename(self.name)[1]


@dataclass(frozen=True)
class FetchedWheel:
    """A wheel that was fetched to `path` and seen to fit; `file` is what a lock would say of it."""

    file: LockedFile
    path: Path


def parse(text: str) -> ExtraWheel:
    """Read what --with is given, URL_OR_FILE#sha256=HEX; raises UserError."""
    source, _, digest = text.rpartition("#sha256=")
    digest = digest.lower()
    if not source or not re.fullmatch(SHA256, digest):
        raise UserError(f"--with {text}: has no SHA-256; write URL_OR_FILE#sha256=HEX, with HEX from where you trust it")
    url, name = "", Path(source).name
    if "://" in source:
        try:
            parts = urlsplit(source)
        except ValueError as odd:
            raise UserError(f"--with {text}: no URL ({odd}); name another, or a file") from None
        if not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _HERE)):
            raise UserError(f"--with {text}: neither https nor http from this machine; download it, and name the file")
        if "@" in parts.netloc or parts.query or not re.fullmatch("[!-~]+", source):
            raise UserError(f"--with {text}: the image's label will have this URL; name one without user, query and spaces")
        url, name = source, unquote(parts.path.rpartition("/")[2])
    if name.endswith((".tar.gz", ".zip")):
        raise UserError(f"--with {name}: a source distribution; build a wheel of it first, or name one of its releases' wheels")
    try:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._!+-]*", name):
            raise InvalidWheelFilename(name)
        _, version, *_ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        raise UserError(f"--with {name}: not the name of a wheel; name a file NAME-VERSION-PYTHON-ABI-PLATFORM.whl") from None
    if version.is_devrelease:
        raise UserError(f"--with {name}: a development version, which says nothing certain; name a release")
    return ExtraWheel(name, digest, source, url)


def from_label(text: str, given: Sequence[ExtraWheel], image: str) -> tuple[ExtraWheel, ...]:
    """Return what the label `text` of `image` names, taken from `given` where that has it; raises UserError.

    What the image's builder had in a file has to be given; the rest is where the label says.
    """
    there = {one.sha256: one for one in given}
    found = []
    for part in text.split():
        try:
            one = parse(part)
        except UserError as odd:
            raise UserError(f"{image}: its label {LABEL} is none of ours: {odd}") from None
        if mine := there.pop(one.sha256, None):
            one = replace(one, source=mine.source)
        elif not one.url:
            raise UserError(f"{image}: has {one.name} from a file; give it: --with FILE#sha256={one.sha256}")
        found.append(one)
    for one in there.values():
        raise UserError(f"--with {one.name}: {image} has no wheel with this SHA-256, by its labels; drop the option")
    return tuple(found)


def fetch_wheels(
    checkout: Checkout, asked: Sequence[ExtraWheel], environment: Environment, locked: Lock
) -> tuple[FetchedWheel, ...]:
    """Fetch what is `asked` for into build/with, where earlier calls left it; each is seen to fit the lock.

    Raises UserError for the first that does not. What a package of the lock would need for an extra that is asked of it
    is not looked at.
    """
    for one in asked:
        _refuse_misfit(one, environment, locked)
    for project, count in Counter(one.project for one in asked).items():
        if count > 1:
            raise UserError(f"--with: {count} wheels are of {project}; keep one")
    folder = checkout.root / "build" / "with"
    paths = {one: folder / one.sha256 / one.name for one in asked}
    if asked:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock", "fetching what --with names"):
            lacking = [one for one in asked if not is_whole(paths[one], one.sha256)]
            wanted = [Download(paths[one], one.source, one.sha256, 0, "--with") for one in lacking]
            fetch(wanted, remedy="look at place and SHA-256 that --with gives")
    metadata = {one: _metadata(one, path) for one, path in paths.items()}
    versions: dict[str, str] = {canonicalize_name(file.name): file.version for file in locked.pip}
    versions |= {one.project: version for one, (version, _) in metadata.items()}
    for one, (_, raw) in metadata.items():
        _refuse_unmet(one, raw, versions, locked)
    return tuple(
        FetchedWheel(
            LockedFile(name=one.project, version=metadata[one][0], file=one.name, size=path.stat().st_size, sha256=one.sha256),
            path,
        )
        for one, path in sorted(paths.items(), key=lambda item: item[0].name)
    )


def extend_lock(locked: Lock, added: Sequence[FetchedWheel]) -> Lock:
    """Return `locked` as if its pip half had what was added, too."""
    return locked.model_copy(update={"pip": (*locked.pip, *(one.file for one in added))})


def require_torch_abi(asked: Sequence[ExtraWheel], locked: Lock, wheels: Path) -> None:
    """Raise UserError where one was compiled for another C++ ABI than the torch in the folder `wheels`."""
    for one in asked:
        abi = _compiled_for(one).get("abi")
        if not abi:
            continue
        torch = next(file for file in locked.pip if file.name == "torch")
        try:
            with zipfile.ZipFile(wheels / torch.file) as archive:
                said = re.search(rb"-D_GLIBCXX_USE_CXX11_ABI=([01])", archive.read(_TORCH_CONFIG))
        except KeyError:
            said = None
        has = {b"0": "false", b"1": "true"}[said[1]] if said else "unknown"
        if has != abi:
            raise UserError(
                f"--with {one.name}: compiled with cxx11abi {abi.upper()}, and that of {torch.file} is {has.upper()}; "
                f"name a wheel for that"
            )


def _refuse_misfit(one: ExtraWheel, environment: Environment, locked: Lock) -> None:
    """Raise UserError where the name alone says that a wheel cannot go into the image."""
    cure = "name one of its other wheels"
    tags = parse_wheel_filename(one.name)[3]
    if not tags & ranking(locked.python, locked.platform).keys():
        why = why_incompatible([Artefact(one.name, "", one.sha256, 0)], locked.python, locked.platform)
        is_for = f"it is for {', '.join(sorted(map(str, tags)))}, the environment for {locked.python} on {locked.platform}"
        raise UserError(f"--with {one.name}: {why or is_for}; {cure}")
    for file in locked.pip:
        if canonicalize_name(file.name) == one.project:
            raise UserError(
                f"--with {one.name}: would replace {file.name} {file.version} of the lock; drop it, or lock that version: "
                f"environments/{environment.name}/environment.yml and nox -s lock -- {environment.name}"
            )
    named = _compiled_for(one)
    cuda = environment.stack.cuda.version
    if digits := named.get("cuda"):
        # The minor release, which some leave out, is one digit: cu12, cu118, cu124.
        major = digits[:-1] if len(digits) > 2 else digits
        if major != cuda.partition(".")[0]:
            raise UserError(f"--with {one.name}: compiled for CUDA {major}, the stack has {cuda}; {cure}")
    if wanted := named.get("torch"):
        torch = next((Version(file.version) for file in locked.pip if file.name == "torch"), None)
        release = Version(wanted).release
        if not torch or torch.release[: len(release)] != release:
            raise UserError(f"--with {one.name}: compiled for torch {wanted}, the lock has {torch or 'none'}; {cure}")


def _compiled_for(one: ExtraWheel) -> dict[str, str]:
    """Return what the local part of a wheel's version says it was compiled for: cuda, torch and abi, as far as it does."""
    found = _COMPILED_FOR.fullmatch(one.version.local or "")
    return {what: text for what, text in found.groupdict().items() if text} if found else {}


def _metadata(one: ExtraWheel, path: Path) -> tuple[str, RawMetadata]:
    """Return the version that a wheel is installed as, and its metadata; raises UserError where they are of another."""
    try:
        with zipfile.ZipFile(path) as archive:
            [info] = {name.split("/")[0] for name in archive.namelist() if name.split("/")[0].endswith(".dist-info")}
            member = archive.getinfo(f"{info}/METADATA")
            if member.file_size > _METADATA:
                raise ValueError(f"{member.file_size} bytes of metadata")
            raw, _ = parse_email(archive.read(member))
        name, _, version = info.removesuffix(".dist-info").partition("-")
        # Releases of flash-attn have the local part in the file's name only: its issue 730.
        fits = Version(version) == Version(raw["version"]) and str(Version(version)) in (str(one.version), one.version.public)
        if not fits or {canonicalize_name(name), canonicalize_name(raw["name"])} != {one.project}:
            raise UserError(f"--with {one.name}: is {name} {version} inside; give the file its own name")
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError) as broken:
        raise UserError(f"--with {one.name}: not a whole wheel ({broken}); name another file") from None
    return version, raw


def _refuse_unmet(one: ExtraWheel, raw: RawMetadata, versions: dict[str, str], locked: Lock) -> None:
    """Raise UserError where `versions` lack what a wheel needs on Linux with the Python of the lock."""
    python = next((package.version for package in locked.conda if package.name == "python"), f"{locked.python}.0")
    machine = {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": locked.platform.partition("-")[0],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": locked.python,
        "sys_platform": "linux",
        "extra": "",
    }
    try:
        if python not in SpecifierSet(wanted := raw.get("requires_python", "")):
            raise UserError(f"--with {one.name}: needs Python {wanted}, the lock has {python}; name another wheel")
        for needed in map(Requirement, raw.get("requires_dist", [])):
            has = versions.get(canonicalize_name(needed.name))
            if needed.marker and not needed.marker.evaluate(machine):
                continue
            if has is None:
                raise UserError(
                    f"--with {one.name}: needs {needed.name}{needed.specifier}, which the lock has not; "
                    f"give a wheel of {needed.name} with --with, too"
                )
            if not needed.specifier.contains(has, prereleases=True):
                raise UserError(f"--with {one.name}: needs {needed.name}{needed.specifier}, there is {has}; name another wheel")
    except (InvalidRequirement, InvalidSpecifier, InvalidVersion) as odd:
        raise UserError(f"--with {one.name}: its metadata ask for what nobody can tell: {odd}; name another wheel") from None
