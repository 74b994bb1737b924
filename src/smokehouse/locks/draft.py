"""Resolve an environment to a draft of its lock."""

import difflib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from smokehouse.environments.definition import Environment
from smokehouse.environments.inputs import CondaInputs, Inputs
from smokehouse.errors import UserError
from smokehouse.locks import conda_lock_yml, constraints, pins
from smokehouse.locks.check import read_lock, virtual_packages
from smokehouse.locks.model import Channel, CondaPackage, Lock
from smokehouse.locks.pins import LockFiles, PinFile
from smokehouse.storage import files as storage

if TYPE_CHECKING:  # both are slow to import
    from smokehouse.locks.solvers.conda import Solution
    from smokehouse.locks.solvers.pip import Preferred, Resolved


# A build that requests packages is tried again with them; one that then requests others has no end.
_MOST_TRIALS = 4


@dataclass(frozen=True)
class Draft:
    """A lock that is resolved and not yet written.

    `texts` has the content of each file, in the order in which to write them; `pins` is the requirements file among
    them. The lock of the builder's own tools is that file alone and has no `lock`.
    """

    pins: Path
    texts: Mapping[Path, str]
    lock: Lock | None = None

    @property
    def packages(self) -> int:
        """The number of its packages."""
        if self.lock:
            return len(self.lock.conda) + len(self.lock.pip)
        return len({*re.findall(r"^([\w.-]+)==", self.texts[self.pins], re.MULTILINE)})

    @property
    def changed(self) -> bool:
        """Whether it differs from the files on disk."""
        return any(_differs(path, text) for path, text in self.texts.items())

    def write(self) -> None:
        """Write the files that differ, lock.json with the digests of the others last; raises OSError."""
        for path, text in self.texts.items():
            if _differs(path, text):
                storage.write(path, text)


def draft(
    environment: Environment,
    files: LockFiles,
    channel: str | None = None,
    upgrade: str | None = None,
    *,
    settled: bool = True,
) -> Draft:
    """Resolve `environment`, its conda packages with the records of `channel` (see `solvers.conda.solve`).

    With `upgrade` only that package may change, and the dependencies that must change with it. The lock records
    that its cut-off was not `settled`. Raises UserError.
    """
    old = read_lock(files) if upgrade else None
    if old and upgrade:
        _require_locked(upgrade, old)
    locked = tuple(package for package in old.conda if package.name != upgrade) if old else ()
    preferred = _preferred(files, upgrade) if upgrade else (None, None)
    try:
        # uv is another process and mostly waits for the index, so solving meanwhile costs almost no time.
        with ThreadPoolExecutor() as threads:
            resolving = threads.submit(_resolve_pip, environment.inputs, *preferred)
            from smokehouse.locks import compatibility

            solution = _solve_conda(environment.conda, channel, locked)
            conda_text = _unchanged_conda(environment, files, solution) or _conda_text(environment, files, solution)
            packages, builds = resolving.result()
        compatibility.check(environment, solution.packages, packages)
    except UserError as wrong:
        raise UserError(f"{files.label}: lock unchanged: {_located(environment, wrong)}") from None
    build_text = pins.build_text_of(files.pins, builds)
    texts = {
        files.pins.path: pins.text_of(environment.inputs, files.pins, packages, build_text),
        files.build_pins: build_text,
        files.conda_lock: conda_text,
    }
    lock = _make_lock(environment, texts, solution, packages, builds, settled=settled)
    texts |= {files.constraints: constraints.text(files, lock), files.lock_json: lock.text()}
    return Draft(files.pins.path, texts, lock)


def _located(environment: Environment, wrong: UserError) -> str:
    """Return the message of `wrong` with the line of an environment.yml that it is about, where it is about one."""
    from smokehouse.locks.solvers import UnsolvableError

    said = str(wrong)
    if not isinstance(wrong, UnsolvableError):
        return said
    # uv and py-rattler name everything on the way to a conflict. What one requires oneself is after "you require".
    for before in ("you require ", "you require .* and ", ""):
        found = {
            match.start(): place
            for name, place in environment.places.items()
            if (match := re.search(rf"{before}(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", said))
        }
        if found:
            return f"{found[min(found)]}: {said.removeprefix(f'{environment.inputs.file} ')}"
    return said


def _make_lock(
    environment: Environment,
    texts: Mapping[Path, str],
    solution: "Solution",
    packages: "Sequence[Resolved]",
    builds: "Sequence[Resolved]",
    *,
    settled: bool,
) -> Lock:
    from smokehouse.locks.solvers.pip import locked_files

    return Lock(
        environment=environment.name,
        python=environment.inputs.python,
        platform=str(environment.inputs.platform),
        cutoff=environment.inputs.cutoff,
        unsettled=None if settled else True,
        inputs=environment.digest(),
        virtual_packages=virtual_packages(environment.conda),
        channel=Channel(name=environment.conda.channel, snapshot=solution.snapshot),
        tools=_tools(),
        files={path.name: storage.sha256(text) for path, text in sorted(texts.items())},
        conda=tuple(solved.package for solved in solution.packages),
        pip=locked_files(packages),
        build=locked_files(builds),
    )


def draft_tools(inputs: Inputs, file: PinFile) -> Draft:
    """Resolve the builder's own tools, for every platform; raises UserError."""
    from smokehouse.locks.solvers.pip import resolve

    try:
        return Draft(file.path, {file.path: pins.text_of(inputs, file, resolve(inputs))})
    except UserError as wrong:
        raise UserError(f"{file.name}: lock unchanged: {wrong}") from None


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()


def _require_locked(upgrade: str, lock: Lock) -> None:
    names = [package.name for package in (*lock.conda, *lock.pip)]
    if upgrade not in names:
        close = difflib.get_close_matches(upgrade, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--upgrade {upgrade}: not found in the lock of {lock.environment}{hint}")


def _preferred(files: LockFiles, upgrade: str) -> "tuple[Preferred, Preferred]":
    """Return the pins to prefer, for the packages and for their build requirements."""
    from smokehouse.locks.solvers.pip import Preferred

    return Preferred(files.pins.path.read_text(), (upgrade,)), Preferred(files.build_pins.read_text(), (upgrade,))


@cache  # for environments with the same conda packages
def _solve_conda(inputs: CondaInputs, channel: str | None, locked: tuple[CondaPackage, ...]) -> "Solution":
    from smokehouse.locks.solvers import conda

    return conda.solve(inputs, channel, locked)


@cache  # for environments with the same PyPI packages
def _resolve_pip(
    inputs: Inputs, preferred: "Preferred | None", build_preferred: "Preferred | None"
) -> "tuple[list[Resolved], list[Resolved]]":
    from smokehouse.locks.solvers import UnsolvableError
    from smokehouse.locks.solvers.pip import resolve, resolve_builds
    from smokehouse.locks.solvers.trial_build import further_requirements

    packages = resolve(inputs, preferred)
    further: dict[str, list[Requirement]] = {}
    for _ in range(_MOST_TRIALS):
        builds = resolve_builds(inputs, packages, build_preferred, further)
        more = further_requirements(inputs, packages, builds, further)
        if not more:
            return packages, builds
        further = {name: [*further.get(name, ()), *more.get(name, ())] for name in (*further, *more)}
    raise UnsolvableError(f"{', '.join(more)}: the build requests other packages each time; pin another version")


def _unchanged_conda(environment: Environment, files: LockFiles, solution: "Solution") -> str | None:
    """Return conda-lock.yml from disk if the same tools made it from the same inputs and records, else None."""
    try:
        old = read_lock(files)
    except UserError:
        return None
    made_from = (environment.digest(), _tools(), solution.snapshot, tuple(solved.package for solved in solution.packages))
    same = made_from == (old.inputs, old.tools, old.channel.snapshot, old.conda)
    text = files.conda_lock.read_text()
    return text if same and text.startswith(_conda_head(environment, files)) else None


def _conda_text(environment: Environment, files: LockFiles, solution: "Solution") -> str:
    conda = environment.conda
    return _conda_head(environment, files) + conda_lock_yml.packages(conda.channel, conda.subdir, solution.packages)


def _conda_head(environment: Environment, files: LockFiles) -> str:
    head = conda_lock_yml.head(environment.conda, environment.inputs.requirements, files.sources(environment))
    return files.pins.title + conda_lock_yml.dumped(head)


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("conda-lock", "py-rattler", "uv")}
