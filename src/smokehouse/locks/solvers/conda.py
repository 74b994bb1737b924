"""Solve for conda packages with py-rattler."""

import asyncio
import os
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import rattler
from rattler import exceptions

from smokehouse import clock, console
from smokehouse.environments.inputs import CondaInputs, package_name
from smokehouse.errors import UserError
from smokehouse.locks.model import CHANNELS, CondaPackage
from smokehouse.locks.solvers import UnsolvableError
from smokehouse.storage.files import sha256

_TIMEOUT = 300.0  # seconds to read a channel, and to solve
_MOST = 8 << 30  # bytes of memory and of written files that either may take; those of conda-forge take a quarter
_LOOK = 0.1  # seconds between two looks at them
T = TypeVar("T")


@dataclass(frozen=True)
class Solved:
    """A conda package with further fields of its record. `python` is true for a Python package."""

    package: CondaPackage
    md5: str
    depends: tuple[str, ...]
    python: bool


@dataclass(frozen=True)
class Solution:
    """The conda packages, sorted by name, and the digest of all candidate records."""

    packages: tuple[Solved, ...]
    snapshot: str


def url(channel: str, package: CondaPackage) -> str:
    """Return the URL of `package` in `channel`."""
    return f"{CHANNELS}{channel}/{package.path}"


def solve(inputs: CondaInputs, location: str | None, locked: Sequence[CondaPackage] = ()) -> Solution:
    """Solve for `inputs`, with the packages in `locked` where they still are a solution; raises UserError.

    The records of the channel in `inputs` are read from `location`: a folder or the URL of a mirror, or the channel's
    public URL if None.
    """
    virtual = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build))
        for name, (version, build) in inputs.virtual
    ]
    source = _open(inputs.channel, inputs.subdir, location)
    candidates = _read(source.candidates(inputs), source.name)
    preferred = {(package.subdir, package.file) for package in locked}
    try:
        records = _run(
            source.solve(
                [rattler.MatchSpec(spec) for spec in inputs.specs],
                virtual_packages=virtual,
                locked_packages=[record for record in candidates if (record.subdir, record.file_name) in preferred],
                exclude_newer=inputs.before - timedelta(milliseconds=1),  # the moment itself is included
                timestamp_policy="allow-missing",  # few old records have none
            )
        )
    except exceptions.SolverError as refused:
        said = str(refused).removeprefix("Cannot solve the request because of: ")
        remedy = "change a requirement of this conflict, move the cut-off, or use another channel"
        raise UnsolvableError(f"{inputs.file} cannot be solved from {source.name}: {_conflicts(said)}; {remedy}") from None
    counted = sorted(
        f"{record.subdir}/{record.file_name} {_sha256(record, source.name)} {record.depends} {record.constrains}"
        for record in candidates
        if record.timestamp is None or record.timestamp < inputs.before
    )
    main = _closure(records, [package_name(spec) for spec in inputs.specs if package_name(spec) not in inputs.devel])
    packages = sorted((_solved(record, main, source.name) for record in records), key=lambda solved: solved.package.name)
    return Solution(tuple(packages), sha256("\n".join(counted)))


class _Source(Protocol):
    """The records of a channel, and a solver that uses them."""

    name: str

    async def candidates(self, inputs: CondaInputs) -> list[rattler.RepoDataRecord]:
        """Return every record that could be part of a solution."""

    async def solve(self, specs: list[rattler.MatchSpec], **options: Any) -> list[rattler.RepoDataRecord]:
        """Return the solution."""


class _FolderSource:
    """Records in repodata.json files in a folder."""

    def __init__(self, folder: Path, channel: str, subdir: str) -> None:
        self.name = str(folder)
        self.channel = rattler.Channel(channel, rattler.ChannelConfig(CHANNELS))
        self.files = {part: folder / part / "repodata.json" for part in (subdir, "noarch")}
        for file in self.files.values():
            if not file.is_file():
                raise UserError(f"{file}: not found; a channel has one for {subdir} and one for noarch")

    @cached_property
    def sparse(self) -> list[rattler.SparseRepoData]:
        return [rattler.SparseRepoData(self.channel, part, file) for part, file in self.files.items()]

    async def candidates(self, inputs: CondaInputs) -> list[rattler.RepoDataRecord]:
        names = [rattler.PackageName(package_name(spec)) for spec in inputs.specs]
        return [record for group in rattler.SparseRepoData.load_records_recursive(self.sparse, names) for record in group]

    async def solve(self, specs: list[rattler.MatchSpec], **options: Any) -> list[rattler.RepoDataRecord]:
        return await rattler.solve_with_sparse_repodata(specs, self.sparse, **options)


class _ServerSource:
    """Records on a server."""

    def __init__(self, name: str, channel: rattler.Channel, subdir: str) -> None:
        self.name = name
        self.channel = channel
        self.platforms: list[Any] = [subdir, "noarch"]
        self.gateway = rattler.Gateway()

    async def candidates(self, inputs: CondaInputs) -> list[rattler.RepoDataRecord]:
        found = await self.gateway.query([self.channel], self.platforms, [package_name(spec) for spec in inputs.specs])
        return [record for group in found for record in group]

    async def solve(self, specs: list[rattler.MatchSpec], **options: Any) -> list[rattler.RepoDataRecord]:
        return await rattler.solve([self.channel], specs, gateway=self.gateway, platforms=self.platforms, **options)


@cache
def _open(channel: str, subdir: str, location: str | None) -> _Source:
    """Return the records of `channel`, once for all environments of a run: reading them takes most of the time."""
    if location is None:
        return _ServerSource(channel, rattler.Channel(channel, rattler.ChannelConfig(CHANNELS)), subdir)
    if re.match(r"https?://", location):
        return _ServerSource(re.sub(r"//[^/@]*@", "//", location), rattler.Channel(location), subdir)
    if "://" in location:
        raise UserError(f"--channel {location}: expected a folder or an http URL, found another URL; use one of them")
    if not Path(location).is_dir():
        message = f"folder not found; specify one with {subdir}/repodata.json and noarch/repodata.json"
        raise UserError(f"--channel {location}: {message}")
    return _FolderSource(Path(location), channel, subdir)


def _read(request: Coroutine[Any, Any, T], name: str) -> T:
    """Return the records that a channel sends; raises UserError where it cannot be read."""
    try:
        return _run(request)
    except TimeoutError:
        raise UserError(
            f"{name}: timed out after {_TIMEOUT:.0f} s; check the network, or specify a mirror or a folder with --channel"
        ) from None
    except _TooLargeError:
        problem = f"expected at most {console.size(_MOST)} of records, found more"
        raise UserError(f"{name}: {problem}; specify a mirror or a folder with --channel") from None
    except (exceptions.GatewayError, exceptions.FetchRepoDataError, OSError, ValueError) as broken:
        raise UserError(
            f"{name}: {_describe(broken)}; check the network, or specify a mirror or a folder with --channel"
        ) from None


class _TooLargeError(Exception):
    """What py-rattler reads has passed the limit, which it has none of itself."""


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what `coroutine` does; raises TimeoutError and _TooLargeError."""

    async def limited() -> T:
        task = asyncio.ensure_future(coroutine)
        began, before = clock.now(), _used()
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK))[0]:
                if clock.now() - began > _TIMEOUT:
                    raise TimeoutError
                if _used() - before > _MOST:
                    raise _TooLargeError
            return task.result()
        finally:
            task.cancel()

    return asyncio.run(limited())


def _used() -> int:
    """Return the bytes of memory of this process and of what it has written, 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        written = re.search(r"^wchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + (int(written[1]) if written else 0)


def _describe(broken: Exception) -> str:
    """Return the nested messages of py-rattler as one, without URLs' users and passwords."""
    said = re.sub(r"https?://(?:[^@/\s]*@)?", "", " ".join(str(broken).split()))
    if re.search(
        r"(expected value|EOF while parsing|invalid type|key must be|expected `).*(line \d+ column|at character)", said
    ):
        return f"expected the records of a channel, found truncated or other data, as from a captive proxy ({said})"
    return f"cannot be read ({said})"


def _conflicts(tree: str) -> str:
    """Return the solver's tree of reasons as one line, with the first path of each top-level branch."""
    chains: list[list[str]] = []
    path: list[tuple[int, str]] = []
    for line in tree.splitlines():
        found = re.match(r"([│├└─\s]*)(.*)", line)
        if not found or not found[2] or found[2].startswith("The following packages"):
            continue
        depth = len(found[1])
        if path and depth <= path[-1][0]:
            chains.append([text for _, text in path])
            path = [step for step in path if step[0] < depth]
        path.append((depth, _step(found[2])))
    chains.append([text for _, text in path])
    roots: dict[str, str] = {}
    for chain in chains:
        if chain:
            roots.setdefault(chain[0], ": ".join(chain))
    # Virtual packages are no request of the environment.
    return "; ".join(text for root, text in roots.items() if len(roots) == 1 or not root.startswith("__"))


def _step(text: str) -> str:
    text = re.sub(
        r", which conflicts with any .*|, which can(not)? be installed .*|can(not)? be installed .*| can be installed with .*",
        "",
        text,
    )
    return text.strip().rstrip(":,.")


def _closure(records: Sequence[rattler.RepoDataRecord], names: Sequence[str]) -> set[str]:
    """Return `names` and the names of their transitive dependencies among `records`."""
    depends = {record.name.normalized: record.depends for record in records}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name in depends:
            found.add(name)
            waiting += [text.split()[0] for text in depends[name]]
    return found


def _solved(record: rattler.RepoDataRecord, main: set[str], source: str) -> Solved:
    name = record.name.normalized
    category: Literal["main", "devel"] = "main" if name in main else "devel"
    if record.md5 is None:
        raise UserError(
            f"{record.file_name}: MD5 not found in {source}, but conda-lock's format requires it; use a channel that has it"
        )
    package = CondaPackage(
        name=name,
        version=str(record.version),
        file=record.file_name,
        size=record.size or 0,
        sha256=_sha256(record, source),
        build=str(record.build),
        subdir=record.subdir,
        category=category,
        license=record.license,
    )
    python = name != "python" and any(text.split()[0] == "python" for text in record.depends)
    return Solved(package, record.md5.hex(), tuple(record.depends), python)


def _sha256(record: rattler.RepoDataRecord, source: str) -> str:
    if record.sha256 is None:
        raise UserError(f"{record.file_name}: SHA-256 not found in {source}; use a channel that has it")
    return record.sha256.hex()
