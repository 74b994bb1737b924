"""Check that a lock has what its packages import at run time without declaring it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from smokehouse.errors import UserError
from smokehouse.locks.model import LockedFile


@dataclass(frozen=True)
class _Import:
    """An undeclared dependency: releases `versions` of `package` import `needs`, for what `when` says."""

    package: str
    versions: SpecifierSet
    needs: str
    when: str


_IMPORTS = (
    # deepspeed/ops/op_builder/builder.py imports torch.utils.cpp_extension, which imports setuptools; torch declares it for
    # Python 3.12 and later only, and deepspeed for its build. Without it no op is compiled, and FusedAdam and CPUAdam fail.
    _Import("deepspeed", SpecifierSet(), "setuptools", "to compile its ops"),
)


def check(name: str, locked: Iterable[LockedFile]) -> None:
    """Raise UserError where the packages `locked` of the environment `name` lack one that they import."""
    for problem in problems(name, {file.name: file.version for file in locked}):
        raise UserError(problem)


def problems(name: str, versions: dict[str, str]) -> Iterator[str]:
    """Yield what the packages of the environment `name`, versions by name, import without having it."""
    for entry in _IMPORTS:
        found = versions.get(entry.package)
        if found and entry.needs not in versions and entry.versions.contains(found, prereleases=True):
            yield (
                f"{name}: expected {entry.needs}, which {entry.package} {found} imports {entry.when}, lock has no such "
                f"package; add it to the pip list of environments/{name}/environment.yml and lock again"
            )
