"""Resolve PyPI packages with uv, to the files that a lock lists."""

import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name
from packaging.version import Version

from smokehouse.environments.inputs import Inputs
from smokehouse.environments.requirement import parse
from smokehouse.errors import UserError
from smokehouse.locks.model import LockedFile
from smokehouse.locks.solvers import UnsolvableError, sdist
from smokehouse.locks.wheel_tags import Artefact, artefacts, best_wheel, ranking, why_incompatible
from smokehouse.programs.uv import ANY_PYTHON, RESOLVE_DEADLINE, run_uv


@dataclass(frozen=True)
class Preferred:
    """Versions to prefer: a lock's pins as text, and the packages that may be upgraded nevertheless."""

    pins: str
    upgradable: tuple[str, ...] = ()


def compile_pins(inputs: Inputs, *options: str, preferred: Preferred | None = None, cached: bool = False) -> str:
    """Resolve `inputs` and return what uv writes with `options` added; raises UserError without a solution.

    Versions in `preferred` are kept where they still are a solution. With `cached`, after an equal request, uv's cache is
    used without the network where it suffices.
    """
    if cached:
        with suppress(UserError):
            return compile_pins(inputs, "--offline", *options, preferred=preferred)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.in")
        requirements.write_text("".join(f"{requirement}\n" for requirement in inputs.requirements))
        # uv prefers the versions that it finds in the file it writes to.
        written = Path(folder, "pylock.toml" if "pylock.toml" in options else "pins.txt")
        if preferred:
            written.write_text(preferred.pins)
            options = (*options, *(f"--upgrade-package={name}" for name in preferred.upgradable))
        command = [
            "pip",
            "compile",
            requirements.name,
            "--output-file",
            written.name,
            "--python-version",
            inputs.python,
            *ANY_PYTHON,
        ]
        if inputs.constraints:
            Path(folder, "constraints.txt").write_text(inputs.constraints)
            command += ["--constraints", "constraints.txt"]
        command += ["--exclude-newer", f"{inputs.before:%Y-%m-%dT%H:%M:%SZ}"]
        command += ["--python-platform", inputs.platform] if inputs.platform else ["--universal"]
        command += ["--resolution", "highest", "--prerelease", "if-necessary-or-explicit", "--no-header", "--quiet"]
        try:
            run_uv([*command, *options], f"{inputs.file} cannot be resolved", RESOLVE_DEADLINE, cwd=Path(folder))
        except UserError as failed:
            raise _reason(str(failed)) from None
        return written.read_text()


def _reason(said: str) -> UserError:
    """Return the error for a message of uv: one that names the packages, and what to do, where that is the requirements."""
    if build := re.search(r"Failed to (?:download and )?build `([\w.-]+==[^`]+)`.* failed \(exit status: \d+\)(.*)", said):
        return sdist.unbuildable(build[1], build[2].strip())
    if "No solution found" not in said:
        return UserError(said)
    said = said.replace("No solution found when resolving dependencies: ", "").rstrip(".")
    remedy = "" if "; request an older version" in said else "; change a requirement of this conflict, or move the cut-off"
    return UnsolvableError(f"{said}{remedy}")


@dataclass(frozen=True)
class Resolved:
    """One package of a resolution: the files to lock, and in `via` what requires it."""

    name: str
    version: str
    marker: str
    files: tuple[Artefact, ...]
    via: tuple[str, ...]

    @property
    def sdist(self) -> Artefact | None:
        """The source distribution if there is no wheel to lock, else None."""
        return None if any(file.name.endswith(".whl") for file in self.files) else self.files[0]


def resolve(inputs: Inputs, preferred: Preferred | None = None) -> list[Resolved]:
    """Return the packages that solve `inputs`, sorted by name, at `preferred` versions where possible; raises UserError.

    For one platform, each has the one file that an installer takes there; for all platforms, every file.
    """
    return _resolve(inputs, {requirement.name: (inputs.file,) for requirement in inputs.requirements}, preferred)


def resolve_builds(
    inputs: Inputs,
    packages: Sequence[Resolved],
    preferred: Preferred | None = None,
    further: Mapping[str, Sequence[Requirement]] | None = None,
) -> list[Resolved]:
    """Return the packages that build the source distributions among `packages`, sorted by name; raises UserError.

    `further` has what a build requires beyond its pyproject.toml, by the package's name.
    """
    waiting = [package for package in packages if package.sdist]
    requirements: dict[str, Requirement] = {}
    via: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    found: list[Resolved] = []
    # A build requirement can be a source distribution itself.
    while waiting:
        for package in waiting:
            seen.add(package.name)
            for requirement in (*sdist.build_requirements(package.files[0]), *(further or {}).get(package.name, ())):
                requirements[str(requirement)] = requirement
                via[requirement.name] = (*via.get(requirement.name, ()), package.name)
        build = replace(inputs, file=f"the build of {', '.join(sorted(seen))}", requirements=tuple(requirements.values()))
        found = _resolve(build, via, preferred)
        waiting = [package for package in found if package.sdist and package.name not in seen]
    return found


def locked_files(packages: Sequence[Resolved]) -> tuple[LockedFile, ...]:
    """Return the locked file of each package, which is one."""
    found = []
    for package in packages:
        (file,) = package.files
        found.append(LockedFile(name=package.name, version=package.version, file=file.name, size=file.size, sha256=file.sha256))
    return tuple(found)


def _resolve(inputs: Inputs, required_by: Mapping[str, tuple[str, ...]], preferred: Preferred | None) -> list[Resolved]:
    if not inputs.requirements:
        return []
    pylock, annotated = _compile(inputs, preferred)
    dependents = _dependents(annotated)
    ranks = ranking(inputs.python, inputs.platform) if inputs.platform else None
    found = []
    for entry in tomllib.loads(pylock).get("packages", []):
        package = _package(entry, inputs, ranks)
        if (package.name, package.version) not in dependents:
            raise UserError(f"{package.name}: the index changed while resolving; run it again")
        via = {*required_by.get(package.name, ()), *dependents[package.name, package.version]}
        found.append(replace(package, via=tuple(sorted(via))))
    return sorted(found, key=lambda package: (package.name, Version(package.version)))


def _compile(inputs: Inputs, preferred: Preferred | None) -> tuple[str, str]:
    """Return uv's resolution twice: as pylock.toml, which has the files, and as requirements with `# via` comments."""
    annotated = compile_pins(inputs, "--annotation-style", "line", "--no-strip-markers", preferred=preferred)
    # uv ignores preferred pins when it writes pylock.toml, so they are requirements there.
    if preferred:
        inputs = replace(inputs, requirements=(*inputs.requirements, *(parse(pin) for pin in _pins(annotated))))
    return compile_pins(inputs, "--format", "pylock.toml", cached=True), annotated


def _pins(annotated: str) -> list[str]:
    return re.findall(r"^[\w.-]+==[\w.!+-]+", annotated, re.MULTILINE)


def _package(entry: dict[str, Any], inputs: Inputs, ranks: dict[Tag, int] | None) -> Resolved:
    """Return a package of pylock.toml; raises UserError where it cannot be locked."""
    name = canonicalize_name(entry["name"])
    if "version" not in entry or entry.keys() & {"vcs", "directory", "archive"}:
        raise UnsolvableError(f"{name}: expected a release with a hash, found a repository or folder; require a release")
    version = entry["version"]
    if Version(version).is_devrelease:
        raise UnsolvableError(f"{name}: expected a release, found the development version {version}; pin a release")
    if name in inputs.left_out:
        raise UnsolvableError(f"{name} is left out in stack.toml, but a package requires it; find it with uv tree")
    try:
        wheels = artefacts(entry.get("wheels", []))
        sources = artefacts([entry["sdist"]] if "sdist" in entry else [])
    except KeyError:
        raise UnsolvableError(f"{name}=={version}: SHA-256 not found in the index; use an index that has it") from None
    if ranks is None or inputs.platform is None:
        files = [*wheels, *sources]
    else:
        wheel = best_wheel(wheels, ranks)
        files = [wheel] if wheel else sources
        if not wheel and (problem := why_incompatible(wheels, inputs.python, inputs.platform)):
            raise UnsolvableError(f"{name}=={version}: {problem}; pin another version, or change the environment")
    if not files:
        raise UnsolvableError(
            f"{name}=={version}: expected a file for Python {inputs.python} on {inputs.platform}, found none; pin another"
        )
    return Resolved(name, version, entry.get("marker", "") if ranks is None else "", tuple(files), ())


def _dependents(annotated: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return what requires each (name, version) of a requirements file with `# via` comments."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for line in annotated.splitlines():
        if pin := re.match(r"([\w.-]+)==([\w.!+-]+)[^#]*(?:# via (.*))?", line):
            via = [part.strip() for part in (pin[3] or "").split(",")]
            found[canonicalize_name(pin[1]), pin[2]] = tuple(part for part in via if part and not part.startswith("-r"))
    return found
