"""py-rattler, the solver of the conda half."""

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import rattler
from rattler import exceptions

from smokehouse.environments.inputs import CondaInputs, package_name
from smokehouse.errors import UserError
from smokehouse.locks.model import CHANNELS, CondaPackage
from smokehouse.storage.files import sha256

_PATIENCE = 300.0  # seconds for a channel's answer, and for a solution
T = TypeVar("T")


@dataclass(frozen=True)
class Solved:
    """A package of the conda half with what its record says beyond that. `python` tells a Python package."""

    package: CondaPackage
    md5: str
    depends: tuple[str, ...]
    python: bool


@dataclass(frozen=True)
class Solution:
    """The conda half, sorted by name, and the digest of all records that could have been part of it."""

    packages: tuple[Solved, ...]
    snapshot: str


def url(channel: str, package: CondaPackage) -> str:
    """Return where `channel` has `package`."""
    return f"{CHANNELS}{channel}/{package.path}"


def solve(inputs: CondaInputs, where: str | None, keep: Sequence[CondaPackage] = ()) -> Solution:
    """Return what answers `inputs`, of the packages in `keep` those that still do.

    The records are those of the channel that `inputs` name, read from `where`: a folder or an address of a mirror, the
    channel's own address when None. Raises UserError.
    """
    virtual = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build))
        for name, (version, build) in inputs.virtual
    ]
    source = _open(inputs.channel, inputs.subdir, where)
    candidates = _ask(source.candidates(inputs), source.name)
    kept = {(package.subdir, package.file) for package in keep}
    try:
        records = _run(
            source.solve(
                [rattler.MatchSpec(spec) for spec in inputs.specs],
                virtual_packages=virtual,
                locked_packages=[record for record in candidates if (record.subdir, record.file_name) in kept],
                exclude_newer=inputs.before - timedelta(milliseconds=1),  # the moment itself would still count
                timestamp_policy="allow-missing",  # few old records have none
            )
        )
    except exceptions.SolverError as refused:
        said = str(refused).removeprefix("Cannot solve the request because of: ")
        raise UserError(f"{inputs.file} cannot be solved from {source.name}: {_chain(said)}") from None
    counted = sorted(
        f"{record.subdir}/{record.file_name} {_hex(record, source.name)} {record.depends} {record.constrains}"
        for record in candidates
        if record.timestamp is None or record.timestamp < inputs.before
    )
    main = _closure(records, [package_name(spec) for spec in inputs.specs if package_name(spec) not in inputs.devel])
    packages = sorted((_solved(record, main, source.name) for record in records), key=lambda solved: solved.package.name)
    return Solution(tuple(packages), sha256("\n".join(counted)))


class _Source(Protocol):
    """A channel's records, and how to solve with them."""

    name: str

    async def candidates(self, inputs: CondaInputs) -> list[rattler.RepoDataRecord]:
        """Return every record that a solution could take."""

    async def solve(self, specs: list[rattler.MatchSpec], **options: Any) -> list[rattler.RepoDataRecord]:
        """Return the solution."""


class _Folder:
    """Records in repodata.json files on this machine."""

    def __init__(self, folder: Path, channel: str, subdir: str) -> None:
        self.name = str(folder)
        self.channel = rattler.Channel(channel, rattler.ChannelConfig(CHANNELS))
        self.files = {part: folder / part / "repodata.json" for part in (subdir, "noarch")}
        for file in self.files.values():
            if not file.is_file():
                raise UserError(f"{file}: no such file; a channel has one for {subdir} and one for noarch")

    @cached_property
    def sparse(self) -> list[rattler.SparseRepoData]:
        return [rattler.SparseRepoData(self.channel, part, file) for part, file in self.files.items()]

    async def candidates(self, inputs: CondaInputs) -> list[rattler.RepoDataRecord]:
        names = [rattler.PackageName(package_name(spec)) for spec in inputs.specs]
        return [record for group in rattler.SparseRepoData.load_records_recursive(self.sparse, names) for record in group]

    async def solve(self, specs: list[rattler.MatchSpec], **options: Any) -> list[rattler.RepoDataRecord]:
        return await rattler.solve_with_sparse_repodata(specs, self.sparse, **options)


class _Address:
    """Records that a server has."""

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
def _open(channel: str, subdir: str, where: str | None) -> _Source:
    """Return the records of `channel`; one source for all environments of a run, since reading one takes most of the time."""
    if where is None:
        return _Address(channel, rattler.Channel(channel, rattler.ChannelConfig(CHANNELS)), subdir)
    if re.match(r"https?://", where):
        return _Address(re.sub(r"//[^/@]*@", "//", where), rattler.Channel(where), subdir)
    if "://" in where:
        raise UserError(f"--channel {where}: neither a folder nor an http address; use one of them")
    if not Path(where).is_dir():
        raise UserError(f"--channel {where}: no such folder; it has {subdir}/repodata.json and noarch/repodata.json")
    return _Folder(Path(where), channel, subdir)


def _ask(answer: Coroutine[Any, Any, T], name: str) -> T:
    """Return what a channel answers; raises UserError where it does not, or nothing of use."""
    try:
        return _run(answer)
    except TimeoutError:
        raise UserError(f"{name}: no answer within {_PATIENCE:.0f} s; check the network, or use --channel") from None
    except (exceptions.GatewayError, exceptions.FetchRepoDataError, OSError, ValueError) as broken:
        raise UserError(f"{name}: {_why(broken)}; check the network, or name a mirror or a folder with --channel") from None


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(coroutine, _PATIENCE)

    return asyncio.run(limited())


def _why(broken: Exception) -> str:
    """Return the cause among the nested messages of py-rattler."""
    said = re.sub(r"https?://(?:[^@/\s]*@)?", "", " ".join(str(broken).split()))
    if re.search(
        r"(expected value|EOF while parsing|invalid type|key must be|expected `).*(line \d+ column|at character)", said
    ):
        return f"what it gives is cut short or is no records of a channel, as of a captive proxy ({said})"
    return f"cannot be read ({said})"


def _chain(tree: str) -> str:
    """Return the solver's tree of reasons as one line: of each branch the first way down, to where it meets another."""
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
    # What the machine is stated to have is no request.
    return "; ".join(text for root, text in roots.items() if len(roots) == 1 or not root.startswith("__"))


def _step(text: str) -> str:
    text = re.sub(
        r", which conflicts with any .*|, which can(not)? be installed .*|can(not)? be installed .*| can be installed with .*",
        "",
        text,
    )
    return text.strip().rstrip(":,.")


def _closure(records: Sequence[rattler.RepoDataRecord], names: Sequence[str]) -> set[str]:
    """Return `names` and the names of all that they need among `records`."""
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
        raise UserError(f"{record.file_name}: {source} gives no MD5 for it, which conda-lock's format demands; use another")
    package = CondaPackage(
        name=name,
        version=str(record.version),
        file=record.file_name,
        size=record.size or 0,
        sha256=_hex(record, source),
        build=str(record.build),
        subdir=record.subdir,
        category=category,
        license=record.license,
    )
    python = name != "python" and any(text.split()[0] == "python" for text in record.depends)
    return Solved(package, record.md5.hex(), tuple(record.depends), python)


def _hex(record: rattler.RepoDataRecord, source: str) -> str:
    if record.sha256 is None:
        raise UserError(f"{record.file_name}: {source} gives no SHA-256 for it; use a channel that does")
    return record.sha256.hex()
