"""Projects: a repository of the user's own, installed editable beside a lock that its dependencies must fit."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from smokehouse.console import as_typed
from smokehouse.environments.inputs import Inputs
from smokehouse.environments.requirement import parse as parse_requirement
from smokehouse.errors import UserError
from smokehouse.locks import LockedEnvironment, LockedFile, constraints, markers
from smokehouse.programs import git, uv


@dataclass(frozen=True)
class ProjectRequest:
    """A project as --with-project and --extra specify it: its folder and the extras to install."""

    path: Path
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """A project whose dependencies fit a lock, as the marker of an installation records it.

    `commit` is that of its working tree, "" without one, and `modified` whether tracked files differ from it. `requires`
    has its requirements on this machine, `added` the packages that the lock lacks, `build` what builds those without a wheel.
    """

    path: Path
    name: str
    version: str
    extras: tuple[str, ...]
    commit: str
    modified: bool
    requires: tuple[str, ...]
    added: tuple[LockedFile, ...] = ()
    build: tuple[LockedFile, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The project as JSON."""
        plain = asdict(self) | {"path": str(self.path)}
        return plain | {key: [file.model_dump() for file in getattr(self, key)] for key in ("added", "build")}


def parse(text: str, extras: Sequence[str]) -> ProjectRequest:
    """Parse DIR[EXTRA,...], as --with-project takes it, and `extras`; raises UserError."""
    # A folder may have brackets in its name.
    found = None if Path(text).is_dir() else re.fullmatch(r"(.*)\[([^\[\]]*)\]", text)
    folder = Path(found[1] if found else text)
    names = [*([part.strip() for part in found[2].split(",")] if found else []), *extras]
    if not folder.is_dir():
        raise UserError(f"--with-project {text}: folder not found; specify a repository as DIR or DIR[EXTRA,...]")
    if not any((folder / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise UserError(f"--with-project {folder}: pyproject.toml or setup.py not found; specify the folder that has one")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
            raise UserError(f"--with-project {folder}: invalid extra {name!r}; write DIR[EXTRA,...] or --extra EXTRA")
    return ProjectRequest(folder.absolute(), tuple(sorted({canonicalize_name(name) for name in names})))


def plan(request: ProjectRequest, locked: LockedEnvironment, earlier: object = None) -> Project:
    """Resolve the dependencies of a project against a lock, and return what to install; nothing is installed.

    `earlier` is the record of a former plan: where nothing that it depends on has changed, its versions are kept.

    Raises:
        UserError: the project is invalid, or requires another version of a locked package.
    """
    path = request.path
    raw, _ = parse_email(uv.read_metadata(path, locked.lock.python))
    name, version = canonicalize_name(raw.get("name", "")), raw.get("version", "")
    if not name or not version:
        raise UserError(f"{path}: name or version not found in its metadata; fix its pyproject.toml or setup.py")
    _require_extras(path, request.extras, raw)
    requirements = _requirements(path, request.extras, raw, locked)
    versions = _versions(locked)
    if name in versions:
        raise UserError(
            f"{path}: {name} {versions[name]} is locked, so the project would replace it; rename the project, or use an "
            f"environment without {name}"
        )
    _require_compatible(path, requirements, versions, locked)
    commit, modified = git.commit_of(path)
    requires = tuple(sorted(map(str, requirements)))
    project = Project(path, name, version, request.extras, commit, modified, requires)
    if kept := _kept(earlier, project):
        return Project(path, name, version, request.extras, commit, modified, requires, *kept)
    added, build = _resolve(path, requirements, versions, locked)
    return Project(path, name, version, request.extras, commit, modified, requires, added, build)


def files_of(record: object, key: str) -> tuple[LockedFile, ...]:
    """Return the files that the `record` of a project lists under `key`, none where it is invalid."""
    try:
        return tuple(LockedFile.model_validate(file) for file in record[key]) if isinstance(record, dict) else ()
    except (KeyError, TypeError, ValueError):
        return ()


def _kept(earlier: object, project: Project) -> tuple[tuple[LockedFile, ...], tuple[LockedFile, ...]] | None:
    if not isinstance(earlier, dict) or earlier.get("requires") != list(project.requires):
        return None
    return files_of(earlier, "added"), files_of(earlier, "build")


def _versions(locked: LockedEnvironment) -> dict[str, str]:
    """Return the locked version of each Python package."""
    pins = (line.partition("==") for line in constraints.pins(locked.lock).splitlines())
    return {str(canonicalize_name(name)): version for name, _, version in pins}


def _require_extras(path: Path, extras: Sequence[str], raw: RawMetadata) -> None:
    provided = {str(canonicalize_name(extra)) for extra in raw.get("provides_extra", [])}
    if unknown := [extra for extra in extras if extra not in provided]:
        known = ", ".join(sorted(provided)) or "none"
        raise UserError(f"{path}: extra {unknown[0]} not found; its extras are: {known}")


def _requirements(path: Path, extras: Sequence[str], raw: RawMetadata, locked: LockedEnvironment) -> list[Requirement]:
    """Return what a project requires on Linux with the Python of the lock, for itself and for `extras`."""
    python, machine = markers.python_version(locked.lock), markers.of(locked.lock)
    try:
        if python not in SpecifierSet(required := raw.get("requires_python", "")):
            raise UserError(f"{path}: requires Python {required}, lock has {python}; use another environment")
        return list(_applicable(path, str(raw.get("name")), extras, raw.get("requires_dist", []), machine))
    except (InvalidRequirement, InvalidSpecifier, ValueError) as error:
        raise UserError(f"{path}: invalid requirement ({error}); fix its pyproject.toml or setup.py") from None


def _applicable(
    path: Path, name: str, extras: Sequence[str], listed: Sequence[str], machine: Mapping[str, str]
) -> Iterator[Requirement]:
    """Yield each requirement that applies, without its marker; an extra can require others of the project itself."""
    waiting, seen, found = ["", *extras], set(), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, listed):
            if requirement.marker and not requirement.marker.evaluate({**machine, "extra": extra}):
                continue
            if canonicalize_name(requirement.name) == canonicalize_name(name):
                waiting += [str(canonicalize_name(other)) for other in requirement.extras]
                continue
            requirement.marker = None
            if requirement.url:
                raise UserError(
                    f"{path}: requires {requirement}, of which the lock can have no hash; require a release, or add a wheel "
                    f"with --with URL#sha256=HEX"
                )
            parsed = parse_requirement(str(requirement))
            if str(parsed) not in found:
                found.add(str(parsed))
                yield parsed


def _require_compatible(
    path: Path, requirements: Sequence[Requirement], versions: Mapping[str, str], locked: LockedEnvironment
) -> None:
    """Raise UserError for all requirements that locked versions do not meet."""
    conflicts = [
        f"{requirement}, lock has {versions[requirement.name]}"
        for requirement in requirements
        if requirement.name in versions and not requirement.specifier.contains(versions[requirement.name], prereleases=True)
    ]
    if conflicts:
        raise UserError(
            f"{path}: requires {'; '.join(conflicts)}; widen its requirements, or copy environments/{locked.name} to an "
            f"environment of your own that requires this, and run {as_typed('lock', 'MINE')}"
        )


def _resolve(
    path: Path, requirements: Sequence[Requirement], versions: Mapping[str, str], locked: LockedEnvironment
) -> tuple[tuple[LockedFile, ...], tuple[LockedFile, ...]]:
    """Return the packages that the lock lacks, and what builds them, at the versions of today."""
    # Those that the lock meets bring nothing, except where an extra of theirs does.
    open_ones = tuple(one for one in requirements if one.name not in versions or one.extras)
    if not open_ones:
        return (), ()
    from smokehouse.locks.solvers import pip

    lock = locked.lock
    today = datetime.now(UTC).date()
    inputs = Inputs(os.fspath(path), open_ones, lock.python, lock.platform, today, (), constraints.pins(lock))
    try:
        packages = pip.resolve(inputs)
        added = [package for package in packages if package.name not in versions]
        builds = pip.resolve_builds(Inputs(os.fspath(path), (), lock.python, lock.platform, today), added)
    except UserError as wrong:
        raise UserError(
            f"{wrong}; nothing was installed; change the requirements of {path}, or make an environment of your own with them"
        ) from None
    return pip.locked_files(added), pip.locked_files(builds)
