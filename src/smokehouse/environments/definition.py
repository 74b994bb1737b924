"""The definition of an environment: environment.yml and stack.toml, with those of the stack that it inherits."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

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


def machine_of(platform: str) -> str:
    """Return the machine of a platform, such as x86_64."""
    return platform.partition("-")[0]


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
    """The cut-off and the platform that packages are resolved for, and further platforms that are locked too."""

    cutoff: Annotated[date, AfterValidator(_past)]
    platform: Platform
    platforms: list[Platform] = []

    @model_validator(mode="after")
    def _each_once(self) -> "Packages":
        machines = [machine_of(platform) for platform in (self.platform, *self.platforms)]
        if again := [machine for machine in machines if machines.count(machine) > 1]:
            raise ValueError(f"expected one platform for each machine, found two for {again[0]}; remove one")
        return self


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
    """What the smoke test expects of this environment in place of what its package versions usually have, or have fixed."""

    gloo_race: Literal["present", "fixed"] | None = None
    later_key_layout: Literal["random", "whole"] | None = None
    auto_classes: dict[str, Literal["whole", "refused", "part", "absent"]] = {}


class _Shared(_Model):
    """The content of the stack.toml of a stack: what does not depend on the model."""

    packages: Packages
    cuda: Cuda
    conda: CondaOptions = CondaOptions()
    left_out: list[ExcludedPackage] = []


class _Inheriting(_Model):
    """The content of the stack.toml of an environment that inherits a stack, which alone has cut-off, platform and CUDA."""

    stack: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    model: ModelFamily
    conda: CondaOptions = CondaOptions()
    left_out: list[ExcludedPackage] = []
    expectations: Expectations = Expectations()


class Stack(_Model):
    """The content of the stack.toml of an environment; where it inherits a `stack`, with the content of that one's."""

    stack: str | None = None
    model: ModelFamily
    packages: Packages
    cuda: Cuda
    conda: CondaOptions = CondaOptions()
    left_out: list[ExcludedPackage] = []
    expectations: Expectations = Expectations()


@dataclass(frozen=True)
class Environment:
    """A valid environment.

    `own` has the packages that it adds to the stack that it inherits, or has in another version: PyPI and conda packages by
    name. `files` are its conda environment files, in the order in which conda and conda-lock take them: a later one changes
    what an earlier one requires.
    """

    name: str
    stack: Stack
    inputs: Inputs
    conda: CondaInputs
    places: Mapping[str, str]  # file and line of each PyPI and conda package
    own: frozenset[str]
    files: tuple[Path, ...]

    @property
    def others(self) -> "tuple[Environment, ...]":
        """The same environment for each further platform that it is locked for."""
        return tuple(self._on(platform) for platform in self.stack.packages.platforms)

    def digest(self) -> str:
        """Return the SHA-256 over everything that its lock depends on."""
        return sha256(f"{self.inputs.digest()}\0{self.conda.digest()}")

    def _on(self, platform: str) -> "Environment":
        """Return the same environment for another platform only.

        Compilers have the platform in their name: gxx_linux-64 is gxx_linux-aarch64 there.
        """
        packages = self.stack.packages.model_copy(update={"platform": platform, "platforms": []})
        before, after = (_SUBDIRS[machine_of(name)] for name in (self.inputs.platform or platform, platform))

        def there(spec: str) -> str:
            name = package_name(spec)
            return f"{name.removesuffix(f'_{before}')}_{after}{spec[len(name) :]}" if name.endswith(f"_{before}") else spec

        devel = [there(name) for name in self.stack.conda.devel]
        stack = self.stack.model_copy(update={"packages": packages, "conda": CondaOptions(devel=devel)})
        return replace(
            self,
            stack=stack,
            inputs=replace(self.inputs, platform=platform),
            conda=_conda_inputs(stack, tuple(there(spec) for spec in self.conda.specs)),
            places={there(name): place for name, place in self.places.items()},
        )


def read(checkout: Checkout, name: str) -> Environment:
    """Read and validate the environment `name`; raises UserError with file, line and what to do, for all mistakes at once."""
    folder, place = checkout.environment(name), f"environments/{name}"
    mistakes: list[str] = []
    in_stack: list[str] = []
    own = stack_file = stack = base = None
    inherits = False
    with collecting(in_stack):
        stack_file = read_toml(folder / "stack.toml", f"{place}/stack.toml")
        inherits = "stack" in stack_file.data
        if inherits:
            inheriting = _inheriting(stack_file)
            base = _base(checkout, name, inheriting.stack, stack_file)
            stack = _merged(inheriting, base.shared)
        else:
            stack = stack_file.validate(Stack)
    with collecting(mistakes):
        own = _read_conda_file(read_yaml(folder / "environment.yml", f"{place}/environment.yml"), name, complete=not inherits)
    mistakes += in_stack
    required = own and (base.required.changed_by(own) if base else own)
    if required and stack_file and stack:
        mistakes += _contradictions(stack_file, stack, required)
    raise_all(mistakes)
    assert own is not None
    assert required is not None
    assert stack is not None
    inputs = Inputs(
        file="environment.yml",
        requirements=tuple(required.requirements.values()),
        python=required.python,
        platform=stack.packages.platform,
        cutoff=stack.packages.cutoff,
        left_out=tuple(sorted({canonicalize_name(excluded.package) for excluded in stack.left_out})),
    )
    files = (*((base.folder / "environment.yml",) if base else ()), folder / "environment.yml")
    names = frozenset(own.places)
    return Environment(name, stack, inputs, _conda_inputs(stack, tuple(required.specs.values())), required.places, names, files)


@dataclass(frozen=True)
class _Base:
    """A stack that environments inherit."""

    folder: Path
    shared: _Shared
    required: "_Required"


def _inheriting(document: Document) -> _Inheriting:
    """Return the stack.toml of an environment that inherits a stack; raises UserError."""
    only = [table for table in ("packages", "cuda") if table in document.data]
    raise_all(
        [
            str(
                document.error(
                    (table,), f"[{table}] belongs to the stack {document.data['stack']}; remove it, or do not inherit"
                )
            )
            for table in only
        ]
    )
    return document.validate(_Inheriting)


def _base(checkout: Checkout, environment: str, name: str, used_by: Document) -> _Base:
    """Read and validate the stack `name`, which the file `used_by` of `environment` requests; raises UserError.

    It lies beside the environment: a lock holds the relative path of its file.
    """
    stacks = checkout.stacks(environment)
    known = sorted(path.name for path in stacks.iterdir() if path.is_dir()) if stacks.is_dir() else []
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        packaged = checkout.packaged and checkout.packaged / "environments" / "stacks" / name
        remedy = f"; copy {packaged} to {stacks}" if packaged and packaged.is_dir() else ""
        message = f"environments/stacks/{name}: stack not found; {hint}known: {', '.join(known) or 'none'}{remedy}"
        raise used_by.error(("stack",), message)
    folder, place = stacks / name, f"environments/stacks/{name}"
    mistakes: list[str] = []
    required = shared = document = None
    with collecting(mistakes):
        required = _read_conda_file(read_yaml(folder / "environment.yml", f"{place}/environment.yml"), name)
    with collecting(mistakes):
        document = read_toml(folder / "stack.toml", f"{place}/stack.toml")
        shared = document.validate(_Shared)
    if required and document and shared:
        mistakes += _contradictions(document, shared, required)
    raise_all(mistakes)
    assert required is not None
    assert shared is not None
    return _Base(folder, shared, required)


def _merged(own: _Inheriting, shared: _Shared) -> Stack:
    """Return what an environment and its stack have together; the environment's reason to leave a package out is the one."""
    again = {canonicalize_name(excluded.package) for excluded in own.left_out}
    kept = [excluded for excluded in shared.left_out if canonicalize_name(excluded.package) not in again]
    return Stack(
        stack=own.stack,
        model=own.model,
        packages=shared.packages,
        cuda=shared.cuda,
        conda=CondaOptions(devel=[*shared.conda.devel, *own.conda.devel]),
        left_out=[*kept, *own.left_out],
        expectations=own.expectations,
    )


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
    """What conda environment files require: Python, conda and PyPI packages by name, and file and line of each.

    `python` is "" only for an environment that has the Python of its stack.
    """

    python: str
    specs: Mapping[str, str]
    requirements: Mapping[str, Requirement]
    places: Mapping[str, str]

    def changed_by(self, own: "_Required") -> "_Required":
        """Return what this and `own` require together; where both have a package, that of `own` counts."""
        return _Required(
            own.python or self.python,
            {**self.specs, **own.specs},
            {**self.requirements, **own.requirements},
            {**self.places, **own.places},
        )


def _contradictions(document: Document, stack: _Shared | Stack, required: _Required) -> Iterator[str]:
    """Yield where `stack`, of the stack.toml `document`, excludes a package that is required, or the other way round.

    What an environment inherits and contradicts is told at the environment's own line.
    """
    left_out = document.data.get("left_out", [])
    excluded_here = {canonicalize_name(str(entry["package"])): index for index, entry in enumerate(left_out)}
    for excluded in stack.left_out:
        name = canonicalize_name(excluded.package)
        if place := required.places.get(name) if name in required.requirements else None:
            if name in excluded_here:
                message = f"{excluded.package} is left out here, but environment.yml requires it; remove one of the two"
                yield str(document.error(("left_out", excluded_here[name], "package"), message))
            else:
                yield f"{place}: {excluded.package} is left out in the stack that is inherited; remove it from one of the two"
    for index, devel in enumerate(document.data.get("conda", {}).get("devel", [])):
        if devel not in required.specs:
            message = f"{devel} is devel here, but environment.yml does not require it; add it there or remove it here"
            yield str(document.error(("conda", "devel", index), message))


def _read_conda_file(document: Document, name: str, *, complete: bool = True) -> _Required:
    """Return what a conda environment file requires; raises UserError for all of its mistakes.

    One that is not `complete` adds to another, and may lack Python and a pip list.
    """
    file = document.validate(_CondaFile)
    mistakes: list[str] = []
    if file.name != name:
        message = f"expected the folder's name {name!r}, found {file.name!r}; make them the same"
        mistakes.append(str(document.error(("name",), message)))
    specs: dict[str, str] = {}
    places: dict[str, str] = {}
    sections: list[tuple[int, _Pip]] = []
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, _Pip):
            sections.append((index, entry))
        elif (package := package_name(entry)) in specs:
            mistakes.append(str(document.error(("dependencies", index), f"duplicate package {package}; keep one")))
        else:
            specs[package] = entry
            places[package] = f"{document.name}:{document.line(('dependencies', index))}"
    if len(sections) > 1 or (complete and not sections):
        remedy = "add one '- pip:' list" if not sections else "merge them"
        path: KeyPath = ("dependencies", *(index for index, _ in sections[1:2]))
        message = f"expected one pip list under dependencies, found {len(sections)}; {remedy}"
        mistakes.append(str(document.error(path, message)))
    requirements: dict[str, Requirement] = {}
    for index, section in sections[:1]:
        path = ("dependencies", index, "pip")
        mistakes += _pip_mistakes(document, path, section.pip)
        requirements = {requirement.name: requirement for requirement in section.pip}
        for number, requirement in enumerate(section.pip):
            places[requirement.name] = f"{document.name}:{document.line((*path, number))}"
    python = ""
    with collecting(mistakes):
        python = _python(document, file, complete=complete)
    raise_all(mistakes)
    return _Required(python, specs, requirements, places)


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


def _python(document: Document, file: _CondaFile, *, complete: bool) -> str:
    """Return the minor release of Python, "" where there is none and the file need not be `complete`; raises UserError."""
    for index, entry in enumerate(file.dependencies):
        if isinstance(entry, str) and re.match(r"python\b(?!-)", entry):
            found = re.fullmatch(r"python=(3\.\d+)", entry)
            # The smoke tests are written for 3.11.
            if not found or int(found[1].split(".")[1]) < 11:
                message = f"expected one Python version from 3.11 on, found {entry!r}; write it like python=3.11"
                raise document.error(("dependencies", index), message)
            return found[1]
    if complete:
        raise document.error(("dependencies",), "python not found; add - python=3.11")
    return ""
