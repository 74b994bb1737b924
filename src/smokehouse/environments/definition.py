"""Environments: the hand-written promise, read and validated."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from smokehouse.checkout import Checkout
from smokehouse.environments.documents import Document, Place, read_toml, read_yaml
from smokehouse.environments.inputs import CondaInputs, Inputs, name_of
from smokehouse.environments.requirement import parse
from smokehouse.storage.files import sha256

# How conda calls the platforms whose machine uv calls this.
_SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}

_VERSION = r"[0-9][0-9a-z.]*"
_BOUND = rf"(==|>=|<=|!=|<|>){_VERSION}"

Platform = Literal["x86_64-manylinux_2_17", "x86_64-manylinux_2_28", "aarch64-manylinux_2_17", "aarch64-manylinux_2_28"]


def _past(day: date) -> date:
    if day >= datetime.now(UTC).date():
        raise ValueError(f"cutoff {day} is not over yet, so a lock could differ from day to day; use an earlier day")
    return day


def _requirement(given: object) -> Requirement:
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is no requirement; write it like einops==0.8.1")
    requirement = parse(given)
    if requirement.marker:
        raise ValueError(f"{given!r} has a marker, but an environment is for one platform; drop what follows ';'")
    return requirement


def _conda(text: str) -> str:
    if not re.fullmatch(rf"[a-z0-9_][a-z0-9._-]*(={_VERSION}|{_BOUND}(,{_BOUND})*)?", text):
        raise ValueError(f"{text!r} is no conda package; write it like python=3.11, python==3.11.11 or git>=2.40,<3")
    if name_of(text) == "pip":
        raise ValueError("pip is a Python package, and those belong to the pip half, which needs no pip; drop it")
    return text


def _full(text: str) -> str:
    if not text.strip():
        raise ValueError("a reason is missing; say why, for whoever wonders in a year")
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
            Annotated[_Pip, Tag("pip list")] | Annotated[str, AfterValidator(_conda), Tag("package")],
            Discriminator(lambda given: "pip list" if isinstance(given, dict) else "package"),
        ]
    ]


class ModelFamily(_Model):
    """The model that an environment is for, in the words of transformers."""

    family: str = Field(pattern=r"^[a-z0-9_]+$")
    class_: str = Field(alias="class", pattern=r"^[A-Za-z_]\w*$")


class Packages(_Model):
    """Which packages count."""

    cutoff: Annotated[date, AfterValidator(_past)]
    platform: Platform


class Cuda(_Model):
    """The CUDA release that wheels and toolkit are of, and that the machine's driver must know."""

    version: str = Field(pattern=r"^\d+\.\d+$")


class CondaHalf(_Model):
    """What environment.yml cannot say of the conda half: which of its packages only the devel flavour has."""

    devel: list[str] = []


class LeftOut(_Model):
    """A package that one might expect and that must not come in, with the reason."""

    package: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    reason: Annotated[str, AfterValidator(_full)]


class Expectations(_Model):
    """What the smoke test is to find, which itself asks for all of it."""

    gloo_race: Literal["present", "fixed"] | None = None
    later_key_layout: Literal["random", "whole"] | None = None
    auto_classes: dict[str, Literal["whole", "refused", "part", "absent"]]


class Stack(_Model):
    """stack.toml."""

    model: ModelFamily
    packages: Packages
    cuda: Cuda
    conda: CondaHalf = CondaHalf()
    left_out: list[LeftOut] = []
    expectations: Expectations


@dataclass(frozen=True)
class Environment:
    """One environment, valid."""

    name: str
    stack: Stack
    inputs: Inputs
    conda: CondaInputs

    def digest(self) -> str:
        """Return the SHA-256 over all that its lock depends on."""
        return sha256(f"{self.inputs.digest()}\0{self.conda.digest()}")


def read(checkout: Checkout, name: str) -> Environment:
    """Read and validate the environment `name`; raises UserError naming file, line and cure."""
    folder = checkout.environment(name)
    conda = read_yaml(folder / "environment.yml", f"environments/{name}/environment.yml")
    stack_file = read_toml(folder / "stack.toml", f"environments/{name}/stack.toml")
    python, specs, requirements = _conda_file(conda, name)
    stack = stack_file.validate(Stack)
    for index, left_out in enumerate(stack.left_out):
        if canonicalize_name(left_out.package) in {requirement.name for requirement in requirements}:
            message = f"{left_out.package} is left out here but asked for in environment.yml; drop one of the two"
            raise stack_file.error(("left_out", index, "package"), message)
    asked = Inputs(
        file="environment.yml",
        requirements=tuple(requirements),
        python=python,
        platform=stack.packages.platform,
        cutoff=stack.packages.cutoff,
        left_out=tuple(sorted(canonicalize_name(left_out.package) for left_out in stack.left_out)),
    )
    for index, devel in enumerate(stack.conda.devel):
        if devel not in {name_of(spec) for spec in specs}:
            message = f"{devel} is devel here but not asked for in environment.yml; add it there or drop it here"
            raise stack_file.error(("conda", "devel", index), message)
    machine, _, libc = stack.packages.platform.partition("-manylinux_")
    of_conda = CondaInputs(
        file="environment.yml",
        specs=tuple(specs),
        devel=frozenset(stack.conda.devel),
        channel="conda-forge",
        subdir=_SUBDIRS[machine],
        # Those that conda-lock assumes where it is told `--with-cuda`, so that its content hash and ours agree.
        virtual=(
            ("__archspec", ("1", machine)),
            ("__cuda", (stack.cuda.version, "0")),
            ("__glibc", (libc.replace("_", "."), "0")),
            ("__linux", ("5.10", "0")),
            ("__unix", ("0", "0")),
        ),
        cutoff=stack.packages.cutoff,
    )
    return Environment(name, stack, asked, of_conda)


def _conda_file(document: Document, name: str) -> tuple[str, list[str], list[Requirement]]:
    """Return the Python version, the conda half and the pip half of a conda environment file."""
    file = document.validate(_CondaFile)
    if file.name != name:
        raise document.error(("name",), f"name is {file.name!r} but the folder is {name!r}; make them the same")
    pips = [index for index, entry in enumerate(file.dependencies) if isinstance(entry, _Pip)]
    if len(pips) != 1:
        cure = "add one '- pip:' list" if not pips else "make them one"
        raise document.error(("dependencies", *pips[1:2]), f"{len(pips)} pip lists under dependencies; {cure}")
    place: Place = ("dependencies", pips[0], "pip")
    section = file.dependencies[pips[0]]
    assert isinstance(section, _Pip)
    if not section.pip:
        raise document.error(place, "the pip list is empty; there is nothing to lock")
    first: dict[str, int] = {}
    for index, requirement in enumerate(section.pip):
        if requirement.name in first:
            line = document.line((*place, first[requirement.name]))
            raise document.error((*place, index), f"{requirement.name} stands twice, first in line {line}; keep one")
        first[requirement.name] = index
    specs: list[str] = []
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, str):
            if name_of(entry) in (name_of(spec) for spec in specs):
                raise document.error(("dependencies", index), f"{name_of(entry)} stands twice; keep one")
            specs.append(entry)
    return _python(document, file), specs, section.pip


def _python(document: Document, file: _CondaFile) -> str:
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, str) and re.match(r"python\b(?!-)", entry):
            found = re.fullmatch(r"python=(3\.\d+)", entry)
            # The smoke tests are written for 3.11.
            if not found or int(found[1].split(".")[1]) < 11:
                raise document.error(("dependencies", index), f"{entry!r}: say which Python, 3.11 or later: python=3.11")
            return found[1]
    raise document.error(("dependencies",), "python is missing; add - python=3.11")
