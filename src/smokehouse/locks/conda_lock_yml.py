"""conda-lock.yml: the conda packages in conda-lock's format, version 1, which micromamba and py-rattler read too."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml
from packaging.requirements import Requirement

from smokehouse.environments.inputs import CondaInputs, package_name
from smokehouse.errors import UserError
from smokehouse.storage.files import sha256

if TYPE_CHECKING:  # reading a lock imports no solver
    from smokehouse.locks.solvers.conda import Solved


def head(conda: CondaInputs, pip: Sequence[Requirement], sources: Sequence[str]) -> dict[str, Any]:
    """Return what precedes the packages, as data.

    `sources` are the paths of the conda environment files, relative to the lock. `pip` is part of the content hash, as in
    conda-lock, and of nothing else: the format would store the host of an index.
    """
    metadata = {
        "content_hash": {conda.subdir: content_hash(conda, pip)},
        "channels": [{"url": conda.channel, "used_env_vars": []}],
        "platforms": [conda.subdir],
        "sources": [*sources],
    }
    return {"version": 1, "metadata": metadata}


def dump(title: str, content: Mapping[str, Any]) -> str:
    """Return the file whose parsed content is `content`, as it is generated, under the comment `title`."""
    before = {key: value for key, value in content.items() if key != "package"}
    return title + dumped(before) + dumped({"package": content["package"]})


@cache  # for environments with the same conda packages
def packages(channel: str, subdir: str, solved_packages: "tuple[Solved, ...]") -> str:
    """Return what follows the head in conda-lock.yml."""
    from smokehouse.locks.solvers.conda import url

    models = _models()
    locked = [
        models.LockedDependency(
            name=solved.package.name,
            version=solved.package.version,
            manager="conda",
            platform=subdir,
            dependencies=dict(_dependency(depends) for depends in solved.depends),
            url=url(channel, solved.package),
            hash=models.HashModel(md5=solved.md5, sha256=solved.package.sha256),
            category=solved.package.category,
            optional=solved.package.category != "main",
        )
        for solved in solved_packages
    ]
    nothing = models.LockMeta(content_hash={}, channels=[], platforms=[], sources=[])
    return dumped({"package": models.Lockfile(package=locked, metadata=nothing).dict_for_output()["package"]})


def dumped(content: dict[str, Any]) -> str:
    """Return data in the form of the file."""
    return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False, width=10_000)


def content_hash(conda: CondaInputs, pip: Sequence[Requirement]) -> str:
    """Return what conda-lock 4 computes for this environment file with `--platform` and `--with-cuda`.

    Source: conda_lock/content_hash.py, which takes longer to import than locking takes.
    """
    specs = {("conda", "pip"): _spec("conda", "pip", "*")}  # conda-lock adds it to every environment with a pip list
    for spec in conda.specs:
        name = package_name(spec)
        specs["conda", name] = _spec("conda", name, _conda_version(spec[len(name) :]))
    for requirement in pip:
        version = ",".join(sorted(str(requirement.specifier).split(","))) or "*"
        specs["pip", requirement.name] = _spec("pip", requirement.name, version, sorted(requirement.extras))
    content = {
        "channels": [json.dumps({"url": conda.channel, "used_env_vars": []}, separators=(",", ":"))],
        "specs": [specs[key] for key in sorted(specs)],
        "virtual_package_hash": {
            "noarch": {"info": {"subdir": "noarch"}, "packages": {}},
            conda.subdir: {"info": {"subdir": conda.subdir}, "packages": dict(_virtual(conda))},
        },
    }
    return sha256(json.dumps(content, sort_keys=True))


def _spec(manager: str, name: str, version: str, extras: Sequence[str] = ()) -> dict[str, Any]:
    absent = {"build": None, "conda_channel": None, "hash": None}
    return {"manager": manager, "name": name, "version": version, "category": "main", "extras": list(extras), **absent}


def _conda_version(constraint: str) -> str:
    if fuzzy := re.fullmatch(r"=([^=].*)", constraint):
        return f"{fuzzy[1]}.*"
    return constraint.removeprefix("==")


def _virtual(conda: CondaInputs) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the virtual packages as records of conda-lock's own repository, by file name."""
    for name, (version, build) in conda.virtual:
        full_build = f"{build}_0" if build != "0" else "0"
        yield (
            f"{name}-{version}-{full_build}.tar.bz2",
            {
                "name": name,
                "version": version,
                "build": full_build,
                "build_number": 0,
                "build_string": "" if build == "0" else build,
                "depends": [],
                "noarch": "",
                "package_type": "virtual_system",
                "subdir": conda.subdir,
                "timestamp": 1577854800000,
            },
        )


def _dependency(depends: str) -> tuple[str, str]:
    name, _, version = depends.partition(" ")
    return name, version


def _models() -> Any:
    """Import conda-lock's models of its format, without the rest of conda-lock, which takes two seconds."""
    if "conda_lock" not in sys.modules:
        found = find_spec("conda_lock")
        if not found or not found.submodule_search_locations:
            raise UserError("conda-lock not found; install Smokehouse with its dependencies")
        bare = ModuleType("conda_lock")
        bare.__path__ = list(found.submodule_search_locations)
        sys.modules["conda_lock"] = bare
    return import_module("conda_lock.lockfile.v1.models")
