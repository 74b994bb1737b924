"""The definition of an environment: environment.yml and stack.toml, read and validated."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from smokehouse.checkout import Checkout
from smokehouse.environments.documents import Document, KeyPath, read_toml, read_yaml
from smokehouse.environments.inputs import CondaInputs, Inputs, package_name
from smokehouse.environments.requirement import parse
from smokehouse.errors import collecting, raise_all
from smokehouse.storage.files import sha256

# conda's names of platforms, by uv's name of their machine.
_SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}

_VERSION = r"[0-9][0-9a-z.]*"
_BOUND = rf"(==|>=|<=|!=|<|>){_VERSION}"

Platform = Literal["x86_64-manylinux_2_17", "x86_64-manylinux_2_28", "aarch64-manylinux_2_17", "aarch64-manylinux_2_28"]


def _past(day: date) -> date:
    if day >= datetime.now(UTC).date():
        raise ValueError(f"expected a cutoff before today, found {day}; use an earlier day, or locks differ from day to day")
    return day


def _requirement(value: object) -> Requirement:
    if not isinstance(value, str):
        raise ValueError(f"invalid requirement {value!r}; write it like einops==0.8.1")
    requirement = parse(value)
    if requirement.marker:
        raise ValueError(f"expected no marker, found {value!r}; remove it: an environment is for one platform")
    return requirement


def _conda_spec(text: str) -> str:
    if built := re.fullmatch(rf"([a-z0-9_][a-z0-9._-]*)==?({_VERSION})=[^=]+", text):
        # Python is pinned by its minor release only.
        version = ".".join(built[2].split(".")[:2]) if built[1] == "python" else built[2]
        raise ValueError(f"expected no build, found {text!r}; write {built[1]}={version}: the lock pins the build")
    if not re.fullmatch(rf"[a-z0-9_][a-z0-9._-]*(={_VERSION}|{_BOUND}(,{_BOUND})*)?", text):
        raise ValueError(f"invalid conda package {text!r}; write it like libaio=0.3, libaio==0.3.113 or git>=2.40,<3")
    if package_name(text) == "pip":
        raise ValueError("expected no pip among the conda packages; remove it: uv installs the PyPI packages")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a reason, found none; add it for later readers")
    return text


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class _Pip(_Model):
    pip: list[Annotated[Requirement, BeforeValidator(_requirement)]]


class _CondaFile(_Model):
    name: str
    channels: list[Literal["conda-forge"]]
    dependencies: list[
        Annotated[
            Annotated[_Pip, Tag("pip list")] | Annotated[str, AfterValidator(_conda_spec), Tag("package")],
            Discriminator(lambda entry: "pip list" if isinstance(entry, dict) else "package"),
        ]
    ]


class ModelFamily(_Model):
    """The model that an environment is for: its `model_type` and class in transformers."""

    family: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    class_: str = Field(alias="class", pattern=r"^[A-Za-z_]\w*$")


class Packages(_Model):
    """The cut-off and the platform that packages are resolved for."""

    cutoff: Annotated[date, AfterValidator(_past)]
    platform: Platform


class Cuda(_Model):
    """The CUDA release of wheels and toolkit, which the machine's driver must support."""

    version: str = Field(pattern=r"^\d+\.\d+$")


class CondaOptions(_Model):
    """Options for conda packages that environment.yml has no place for: which of them are for the devel flavour only."""

    devel: list[str] = []


class ExcludedPackage(_Model):
    """A PyPI package that must not be part of the lock, with the reason."""

    package: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    reason: Annotated[str, AfterValidator(_not_blank)]


class Expectations(_Model):
    """The faults that the environment's package versions have, or have fixed; the smoke test verifies each."""

    gloo_race: Literal["present", "fixed"] | None = None
    later_key_layout: Literal["random", "whole"] | None = None
    auto_classes: dict[str, Literal["whole", "refused", "part", "absent"]]


class Stack(_Model):
    """The content of stack.toml."""

    model: ModelFamily
    packages: Packages
    cuda: Cuda
    conda: CondaOptions = CondaOptions()
    left_out: list[ExcludedPackage] = []
    expectations: Expectations


@dataclass(frozen=True)
class Environment:
    """A valid environment."""

    name: str
    stack: Stack
    inputs: Inputs
    conda: CondaInputs
    lines: Mapping[str, int]  # in environment.yml, of each PyPI and conda package

    def digest(self) -> str:
        """Return the SHA-256 over everything that its lock depends on."""
        return sha256(f"{self.inputs.digest()}\0{self.conda.digest()}")


def read(checkout: Checkout, name: str) -> Environment:
    """Read and validate the environment `name`; raises UserError with file, line and what to do, for all mistakes at once."""
    folder = checkout.environment(name)
    mistakes: list[str] = []
    conda_file = stack_file = stack = None
    with collecting(mistakes):
        conda_file = _read_conda_file(read_yaml(folder / "environment.yml", f"environments/{name}/environment.yml"), name)
    with collecting(mistakes):
        stack_file = read_toml(folder / "stack.toml", f"environments/{name}/stack.toml")
        stack = stack_file.validate(Stack)
    if conda_file and stack_file and stack:
        mistakes += _contradictions(stack_file, stack, conda_file)
    raise_all(mistakes)
    assert conda_file is not None
    assert stack is not None
    inputs = Inputs(
        file="environment.yml",
        requirements=tuple(conda_file.requirements),
        python=conda_file.python,
        platform=stack.packages.platform,
        cutoff=stack.packages.cutoff,
        left_out=tuple(sorted(canonicalize_name(excluded.package) for excluded in stack.left_out)),
    )
    return Environment(name, stack, inputs, _conda_inputs(stack, conda_file.specs), conda_file.lines)


def _conda_inputs(stack: Stack, specs: Sequence[str]) -> CondaInputs:
    machine, _, libc = stack.packages.platform.partition("-manylinux_")
    return CondaInputs(
        file="environment.yml",
        specs=tuple(specs),
        devel=frozenset(stack.conda.devel),
        channel="conda-forge",
        subdir=_SUBDIRS[machine],
        # What conda-lock assumes with `--with-cuda`, so that its content hash is the same.
        virtual=(
            ("__archspec", ("1", machine)),
            ("__cuda", (stack.cuda.version, "0")),
            ("__glibc", (libc.replace("_", "."), "0")),
            ("__linux", ("5.10", "0")),
            ("__unix", ("0", "0")),
        ),
        cutoff=stack.packages.cutoff,
    )


@dataclass(frozen=True)
class _Required:
    """What environment.yml requires: Python, conda packages, PyPI packages, and the line of each by name."""

    python: str
    specs: tuple[str, ...]
    requirements: tuple[Requirement, ...]
    lines: Mapping[str, int]


def _contradictions(document: Document, stack: Stack, required: _Required) -> Iterator[str]:
    """Yield where stack.toml excludes a package that environment.yml requires, or the other way round."""
    for index, excluded in enumerate(stack.left_out):
        if canonicalize_name(excluded.package) in {requirement.name for requirement in required.requirements}:
            message = f"{excluded.package} is left out here, but environment.yml requires it; remove one of the two"
            yield str(document.error(("left_out", index, "package"), message))
    for index, devel in enumerate(stack.conda.devel):
        if devel not in {package_name(spec) for spec in required.specs}:
            message = f"{devel} is devel here, but environment.yml does not require it; add it there or remove it here"
            yield str(document.error(("conda", "devel", index), message))


def _read_conda_file(document: Document, name: str) -> _Required:
    """Return what a conda environment file requires; raises UserError for all of its mistakes."""
    file = document.validate(_CondaFile)
    mistakes: list[str] = []
    if file.name != name:
        message = f"expected the folder's name {name!r}, found {file.name!r}; make them the same"
        mistakes.append(str(document.error(("name",), message)))
    specs: dict[str, str] = {}
    lines: dict[str, int] = {}
    sections: list[tuple[int, _Pip]] = []
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, _Pip):
            sections.append((index, entry))
        elif (package := package_name(entry)) in specs:
            mistakes.append(str(document.error(("dependencies", index), f"duplicate package {package}; keep one")))
        else:
            specs[package] = entry
            lines[package] = document.line(("dependencies", index))
    if len(sections) != 1:
        remedy = "add one '- pip:' list" if not sections else "merge them"
        path: KeyPath = ("dependencies", *(index for index, _ in sections[1:2]))
        message = f"expected one pip list under dependencies, found {len(sections)}; {remedy}"
        mistakes.append(str(document.error(path, message)))
    requirements: tuple[Requirement, ...] = ()
    for index, section in sections[:1]:
        requirements = tuple(section.pip)
        path = ("dependencies", index, "pip")
        mistakes += _pip_mistakes(document, path, requirements)
        lines |= {requirement.name: document.line((*path, number)) for number, requirement in enumerate(requirements)}
    python = ""
    with collecting(mistakes):
        python = _python(document, file)
    raise_all(mistakes)
    return _Required(python, tuple(specs.values()), requirements, lines)


def _pip_mistakes(document: Document, path: KeyPath, requirements: Sequence[Requirement]) -> Iterator[str]:
    """Yield where the pip list at `path` is empty or has a package twice."""
    if not requirements:
        yield str(document.error(path, "expected packages in the pip list, found none; add one"))
    first: dict[str, int] = {}
    for index, requirement in enumerate(requirements):
        if requirement.name in first:
            line = document.line((*path, first[requirement.name]))
            message = f"duplicate package {requirement.name}, first in line {line}; keep one"
            yield str(document.error((*path, index), message))
        first.setdefault(requirement.name, index)


def _python(document: Document, file: _CondaFile) -> str:
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, str) and re.match(r"python\b(?!-)", entry):
            found = re.fullmatch(r"python=(3\.\d+)", entry)
            # The smoke tests are written for 3.11.
            if not found or int(found[1].split(".")[1]) < 11:
                message = f"expected one Python version from 3.11 on, found {entry!r}; write it like python=3.11"
                raise document.error(("dependencies", index), message)
            return found[1]
    raise document.error(("dependencies",), "python not found; add - python=3.11")
