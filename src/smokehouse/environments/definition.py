"""The definition of an environment: environment.yml and stack.toml, read and validated."""

import re
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
    if not re.fullmatch(rf"[a-z0-9_][a-z0-9._-]*(={_VERSION}|{_BOUND}(,{_BOUND})*)?", text):
        raise ValueError(f"invalid conda package {text!r}; write it like python=3.11, python==3.11.11 or git>=2.40,<3")
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

    family: str = Field(pattern=r"^[a-z0-9_]+$")
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

    def digest(self) -> str:
        """Return the SHA-256 over everything that its lock depends on."""
        return sha256(f"{self.inputs.digest()}\0{self.conda.digest()}")


def read(checkout: Checkout, name: str) -> Environment:
    """Read and validate the environment `name`; raises UserError with file, line and what to do."""
    folder = checkout.environment(name)
    conda_file = read_yaml(folder / "environment.yml", f"environments/{name}/environment.yml")
    stack_file = read_toml(folder / "stack.toml", f"environments/{name}/stack.toml")
    python, specs, requirements = _read_conda_file(conda_file, name)
    stack = stack_file.validate(Stack)
    _check_names(stack_file, stack, specs, requirements)
    inputs = Inputs(
        file="environment.yml",
        requirements=tuple(requirements),
        python=python,
        platform=stack.packages.platform,
        cutoff=stack.packages.cutoff,
        left_out=tuple(sorted(canonicalize_name(excluded.package) for excluded in stack.left_out)),
    )
    machine, _, libc = stack.packages.platform.partition("-manylinux_")
    conda_inputs = CondaInputs(
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
    return Environment(name, stack, inputs, conda_inputs)


def _check_names(document: Document, stack: Stack, specs: list[str], requirements: list[Requirement]) -> None:
    """Raise UserError where stack.toml excludes a package that environment.yml requires, or the other way round."""
    for index, excluded in enumerate(stack.left_out):
        if canonicalize_name(excluded.package) in {requirement.name for requirement in requirements}:
            message = f"{excluded.package} is left out here, but environment.yml requires it; remove one of the two"
            raise document.error(("left_out", index, "package"), message)
    for index, devel in enumerate(stack.conda.devel):
        if devel not in {package_name(spec) for spec in specs}:
            message = f"{devel} is devel here, but environment.yml does not require it; add it there or remove it here"
            raise document.error(("conda", "devel", index), message)


def _read_conda_file(document: Document, name: str) -> tuple[str, list[str], list[Requirement]]:
    """Return the Python version, the conda packages and the PyPI packages of a conda environment file."""
    file = document.validate(_CondaFile)
    if file.name != name:
        raise document.error(("name",), f"expected the folder's name {name!r}, found {file.name!r}; make them the same")
    specs: list[str] = []
    sections: list[tuple[int, _Pip]] = []
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, _Pip):
            sections.append((index, entry))
        elif package_name(entry) in (package_name(spec) for spec in specs):
            raise document.error(("dependencies", index), f"duplicate package {package_name(entry)}; keep one")
        else:
            specs.append(entry)
    if len(sections) != 1:
        remedy = "add one '- pip:' list" if not sections else "merge them"
        path: KeyPath = ("dependencies", *(index for index, _ in sections[1:2]))
        raise document.error(path, f"expected one pip list under dependencies, found {len(sections)}; {remedy}")
    [(index, section)] = sections
    _check_pip_list(document, ("dependencies", index, "pip"), section.pip)
    return _python(document, file), specs, section.pip


def _check_pip_list(document: Document, path: KeyPath, requirements: list[Requirement]) -> None:
    """Raise UserError where the pip list at `path` is empty or has a package twice."""
    if not requirements:
        raise document.error(path, "expected packages in the pip list, found none; add one")
    first: dict[str, int] = {}
    for index, requirement in enumerate(requirements):
        if requirement.name in first:
            line = document.line((*path, first[requirement.name]))
            raise document.error((*path, index), f"duplicate package {requirement.name}, first in line {line}; keep one")
        first[requirement.name] = index


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
