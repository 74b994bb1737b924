"""Locks: what was resolved, as files that a person reads and an installer obeys."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from smokehouse import manifest as manifests
from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environments
from smokehouse.environments.definition import Environment
from smokehouse.environments.inputs import CondaInputs, Inputs, name_of
from smokehouse.errors import UserError
from smokehouse.manifest import MANIFEST, Channel, CondaPackage, LockedFile, Manifest
from smokehouse.programs.uv import Kept
from smokehouse.storage import files

if TYPE_CHECKING:  # a check of a lock resolves nothing
    from smokehouse.conda import Solution
    from smokehouse.resolution import Resolved

PINS = "requirements.txt"
BUILD_PINS = "build-requirements.txt"
CONDA_LOCK = "conda-lock.yml"


@dataclass(frozen=True)
class LockFiles:
    """Where a lock lies, what messages call it and the command that makes it.

    A lock of no one platform has no `build_pins`: nothing in it is for certain built. The other files are those of an
    environment; `environment` is the environment.yml that it answers.
    """

    pins: Path
    build_pins: Path | None
    name: str
    command: str
    conda: Path | None = None
    manifest: Path | None = None
    environment: Path | None = None


@dataclass(frozen=True)
class Lock:
    """A lock as it lies on disk, seen to be as it was generated.

    `versions` has every version of a package, which can be several where the lock holds on all platforms; `via` has who
    asked for it; `built` are the packages that come as source and take something to build; `download` is the size of
    all files in bytes.
    """

    python: str
    platform: str
    cutoff: str
    inputs: str
    download: int
    versions: dict[str, tuple[str, ...]]
    via: dict[str, tuple[str, ...]]
    built: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A lock that is resolved and not written: the text of each of its files, in the order in which to write them."""

    place: LockFiles
    texts: Mapping[Path, str]
    manifest: Manifest | None

    @property
    def packages(self) -> int:
        """How many packages it has."""
        if self.manifest:
            return len(self.manifest.conda) + len(self.manifest.pip)
        return len({*re.findall(r"^([\w.-]+)==", self.texts[self.place.pins], re.MULTILINE)})

    @property
    def new(self) -> bool:
        """Whether it differs from what lies there."""
        return any(not path.is_file() or path.read_bytes() != text.encode() for path, text in self.texts.items())

    def write(self) -> None:
        """Write what differs; the manifest, which names the digests of the others, comes last. Raises OSError."""
        for path, text in self.texts.items():
            if not path.is_file() or path.read_bytes() != text.encode():
                files.write(path, text)


def environment_lock(checkout: Checkout, name: str) -> LockFiles:
    """Return where the lock of the environment `name` lies."""
    folder = checkout.lock(name)
    shown = checkout.show(folder / PINS)
    asked = checkout.root / "environments" / name / "environment.yml"
    return LockFiles(
        folder / PINS, folder / BUILD_PINS, shown, f"nox -s lock -- {name}", folder / CONDA_LOCK, folder / MANIFEST, asked
    )


def draft(environment: Environment, place: LockFiles, channel: str | None = None, upgrade: str | None = None) -> Draft:
    """Resolve both halves of `environment`, the conda half with the records of `channel` (see `conda.solve`).

    With `upgrade` only that package may move, and what it drags along. Raises UserError.
    """
    assert place.build_pins
    assert place.conda
    assert place.manifest
    assert place.environment
    old = read_manifest(place) if upgrade else None
    if old and upgrade not in {package.name for package in (*old.conda, *old.pip)}:
        close = difflib.get_close_matches(str(upgrade), [package.name for package in (*old.conda, *old.pip)], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--upgrade {upgrade}: neither half of {environment.name} has it{hint}")
    keep = tuple(package for package in old.conda if package.name != upgrade) if old else ()
    kept = [Kept(path.read_text(), (upgrade,)) if upgrade else None for path in (place.pins, place.build_pins)]
    try:
        # The index is waited for in other processes, so the conda half costs next to nothing here.
        with ThreadPoolExecutor() as halves:
            pip_half = halves.submit(_pip_half, environment.inputs, *kept)
            from smokehouse import agreement, conda_lock_file

            solution = _conda_half(environment.conda, channel, keep)
            conda_text = _same_conda(environment, place, solution) or conda_lock_file.text(
                f"# Generated by {place.command}; never edited.\n",
                environment.conda,
                environment.inputs.requirements,
                solution.packages,
                os.path.relpath(place.environment, place.conda.parent),
            )
            packages, builds = pip_half.result()
        agreement.check(environment, solution.packages, packages)
    except UserError as wrong:
        raise UserError(f"{place.pins.parent.name}: the lock stays as it is: {wrong}") from None
    texts = _pip_texts(environment.inputs, place, packages, builds) | {place.conda: conda_text}
    manifest = Manifest(
        environment=environment.name,
        python=environment.inputs.python,
        platform=str(environment.inputs.platform),
        cutoff=environment.inputs.cutoff,
        inputs=environment.digest(),
        virtual_packages=_virtual(environment.conda),
        channel=Channel(name=environment.conda.channel, snapshot=solution.snapshot),
        tools=_tools(),
        files={path.name: files.sha256(text) for path, text in sorted(texts.items())},
        conda=tuple(solved.package for solved in solution.packages),
        pip=tuple(_locked(package) for package in packages),
        build=tuple(_locked(package) for package in builds),
    )
    return Draft(place, texts | {place.manifest: manifest.text()}, manifest)


@cache
def _conda_half(inputs: CondaInputs, channel: str | None, keep: tuple[CondaPackage, ...]) -> "Solution":
    from smokehouse import conda

    return conda.solve(inputs, channel, keep)


def _same_conda(environment: Environment, place: LockFiles, solution: "Solution") -> str | None:
    """Return conda-lock.yml as it lies there where the same tools made it from the same question and the same records."""
    try:
        old = read_manifest(place)
    except UserError:
        return None
    made_from = (environment.digest(), _tools(), solution.snapshot, tuple(solved.package for solved in solution.packages))
    same = made_from == (old.inputs, old.tools, old.channel.snapshot, old.conda)
    return place.conda.read_text() if same and place.conda else None


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("conda-lock", "py-rattler", "uv")}


def draft_tools(inputs: Inputs, place: LockFiles) -> Draft:
    """Resolve the pip half that is all of the builder's own lock; raises UserError."""
    from smokehouse.resolution import resolve

    try:
        return Draft(place, _pip_texts(inputs, place, resolve(inputs), []), None)
    except UserError as wrong:
        raise UserError(f"{place.name} stays as it is: {wrong}") from None


@cache  # for environments that ask the same
def _pip_half(inputs: Inputs, kept: Kept | None, build_kept: Kept | None) -> "tuple[list[Resolved], list[Resolved]]":
    from smokehouse.resolution import resolve, resolve_builds

    packages = resolve(inputs, kept)
    return packages, resolve_builds(inputs, packages, build_kept)


def _locked(package: "Resolved") -> LockedFile:
    (file,) = package.files
    return LockedFile(name=package.name, version=package.version, file=file.name, size=file.size, sha256=file.sha256)


def _pip_texts(
    inputs: Inputs, place: LockFiles, packages: "Sequence[Resolved]", builds: "Sequence[Resolved]"
) -> dict[Path, str]:
    title = f"# Generated by {place.command}; never edited.\n"
    build_text = ""
    if place.build_pins:
        build_text = f"{title}# What the source distributions in {PINS} are built with.\n{_body(builds)}"
    header = {
        "platform": inputs.platform or "any",
        "python": inputs.python,
        "cut-off": str(inputs.cutoff),
        "download": f"{sum(package.files[0].size for package in packages)} bytes",
        "inputs": f"sha256:{inputs.digest()}",
    }
    head = title + "".join(f"# {key}: {text}\n" for key, text in header.items())
    body = _body(packages)
    texts = {place.pins: f"{head}# content: sha256:{_content(head + body, build_text)}\n{body}"}
    if place.build_pins:
        texts[place.build_pins] = build_text
    if any("://" in text for text in texts.values()):
        raise AssertionError("a lock names no host")
    return texts


def read_manifest(place: LockFiles) -> Manifest:
    """Read the lock.json of an environment's lock; raises UserError where the lock is missing or was edited."""
    assert place.manifest
    return manifests.read(place.manifest, str(Path(place.name).with_name(MANIFEST)), f"run {place.command}")


def read(place: LockFiles) -> Lock:
    """Read a lock; raises UserError where it is missing or not as it was generated."""
    cure = f"run {place.command}"
    texts = []
    for path in (place.pins, place.build_pins):
        try:
            texts.append(path.read_text("utf-8") if path else "")
        except FileNotFoundError as missing:
            raise UserError(f"{place.name}: {Path(missing.filename).name} does not exist; {cure}") from None
        except (OSError, UnicodeDecodeError) as broken:
            raise UserError(f"{place.name}: cannot be read ({broken}); {cure}") from None
    text, build_text = texts
    header = dict(re.findall(r"^# ([\w-]+): (.*)$", text, re.MULTILINE))
    without = re.sub(r"^# content: .*\n", "", text, count=1, flags=re.MULTILINE)
    if header.get("content") != f"sha256:{_content(without, build_text)}":
        edited = f"it or {place.build_pins.name} was" if place.build_pins else "it was"
        raise UserError(f"{place.name}: {edited} edited since it was generated; {cure}")
    versions: dict[str, tuple[str, ...]] = {}
    via: dict[str, tuple[str, ...]] = {}
    for package, version, askers in re.findall(r"^([\w.-]+)==([\w.!+-]+)[^#]*# via (.*)$", text, re.MULTILINE):
        versions[package] = (*versions.get(package, ()), version)
        via[package] = (*via.get(package, ()), *askers.split(", "))
    try:
        download = int(header["download"].split()[0])
        inputs = header["inputs"].removeprefix("sha256:")
        built = {name for askers in re.findall("# via (.*)", build_text) for name in askers.split(", ")}
        return Lock(
            header["python"],
            header["platform"],
            header["cut-off"],
            inputs,
            download,
            versions,
            via,
            tuple(sorted(built)),
        )
    except (LookupError, ValueError):
        raise UserError(f"{place.name}: made by another Smokehouse; {cure}") from None


def check(inputs: Inputs, place: LockFiles) -> None:
    """Raise UserError where the pip lock is not what `inputs` ask for, saying what differs. Needs no network."""
    if problem := _difference(inputs, read(place)):
        raise UserError(f"{place.name}: {problem}; run {place.command}")


def check_environment(environment: Environment, place: LockFiles) -> Manifest:
    """Return the manifest of the lock of `environment`; raises UserError as `check` does, for either half."""
    manifest = read_manifest(place)
    if manifest.inputs != environment.digest():
        check(environment.inputs, place)
        problem = _conda_difference(environment.conda, manifest)
        raise UserError(f"{place.pins.parent.name}: {problem}; run {place.command}")
    return manifest


def locked(checkout: Checkout, name: str) -> tuple[Environment, Manifest, str]:
    """Return the environment `name`, the manifest of its lock, seen to be of it, and the SHA-256 of lock.json.

    Raises UserError.
    """
    promise = environments.read(checkout, name)
    manifest = check_environment(promise, environment_lock(checkout, name))
    return promise, manifest, files.hashed(checkout.lock(name) / MANIFEST)


def _virtual(inputs: CondaInputs) -> dict[str, str]:
    """Return the virtual packages as conda-lock writes them: a version, and a build where there is one."""
    return {name: version if build == "0" else f"{version} {build}" for name, (version, build) in inputs.virtual}


def _conda_difference(inputs: CondaInputs, manifest: Manifest) -> str:
    """Return how the conda half of a lock that was made from something else is not what `inputs` ask for."""
    locked = {package.name: package for package in manifest.conda}
    for spec in inputs.specs:
        package = locked.get(name_of(spec))
        if package is None:
            return f"{inputs.file} asks {spec}, the conda half of the lock has none"
        category = "devel" if package.name in inputs.devel else "main"
        if category == "main" != package.category:
            return f"{package.name} is devel in the lock and no longer in stack.toml's [conda] devel"
    virtual = _virtual(inputs)
    for name in sorted(virtual.keys() | manifest.virtual_packages.keys()):
        if virtual.get(name) != manifest.virtual_packages.get(name):
            return f"{name} is to be {virtual.get(name)}, in the lock it is {manifest.virtual_packages.get(name)}"
    return "the conda half was made from other specs, or by an older Smokehouse"


def _difference(inputs: Inputs, lock: Lock) -> str | None:
    """Return how `lock` is not what `inputs` ask for, None where it is."""
    for what, asked, locked in (
        ("Python", inputs.python, lock.python),
        ("platform", inputs.platform or "any", lock.platform),
        ("cut-off", str(inputs.cutoff), lock.cutoff),
    ):
        if asked != locked:
            return f"{what} is to be {asked}, in the lock it is {locked}"
    for requirement in sorted(inputs.requirements, key=str):
        locked_versions = lock.versions.get(requirement.name)
        if locked_versions is None:
            return f"{inputs.file} asks {requirement}, the lock has none"
        if not any(requirement.specifier.contains(version, prereleases=True) for version in locked_versions):
            return f"{inputs.file} asks {requirement}, the lock has {', '.join(locked_versions)}"
    asked_names = {requirement.name for requirement in inputs.requirements}
    if gone := [name for name, via in lock.via.items() if inputs.file in via and name not in asked_names]:
        return f"{inputs.file} no longer asks {', '.join(gone)}, the lock still does"
    if lock.inputs != inputs.digest():
        return "the lock was made from other version ranges, extras or left_out, or by an older Smokehouse"
    return None


def _content(text: str, build_text: str) -> str:
    return files.sha256(f"{text}\0{build_text}")


def _body(packages: "Sequence[Resolved]") -> str:
    lines = []
    for package in packages:
        marker = f" ; {package.marker}" if package.marker else ""
        hashes = sorted({file.sha256 for file in package.files})
        lines.append(f"{package.name}=={package.version}{marker} \\\n")
        lines.append(" \\\n".join(f"    --hash=sha256:{digest}" for digest in hashes))
        lines.append(f"\n    # via {', '.join(package.via)}\n")
    return "".join(lines)
