"""The lock of Smokehouse's own tools: what builds, tests and checks it."""

from datetime import date

from packaging.requirements import Requirement
from pydantic import BaseModel, Field

from smokehouse.checkout import Checkout
from smokehouse.environments.documents import read_toml
from smokehouse.environments.inputs import Inputs
from smokehouse.environments.requirement import parse
from smokehouse.locks.pins import PinFile


class _Project(BaseModel):
    dependencies: list[str]
    requires_python: str = Field(alias="requires-python", pattern=r"^>=3\.\d+$")


class _Groups(BaseModel):
    dev: list[str]


class _Smokehouse(BaseModel):
    tools_cutoff: date = Field(alias="tools-cutoff")


class _Tool(BaseModel):
    smokehouse: _Smokehouse


class _Pyproject(BaseModel):
    project: _Project
    groups: _Groups = Field(alias="dependency-groups")
    tool: _Tool


def read(checkout: Checkout) -> Inputs:
    """Return the requirements in pyproject.toml; raises UserError."""
    document = read_toml(checkout.root / "pyproject.toml", "pyproject.toml")
    pyproject = document.validate(_Pyproject)
    requirements: list[Requirement] = []
    for path, texts in (
        (("project", "dependencies"), pyproject.project.dependencies),
        (("dependency-groups", "dev"), pyproject.groups.dev),
    ):
        for text in texts:
            try:
                requirements.append(parse(text))
            except ValueError as wrong:
                raise document.error(path, str(wrong)) from None
    return Inputs(
        file="pyproject.toml",
        requirements=tuple(requirements),
        python=pyproject.project.requires_python.removeprefix(">="),
        platform=None,
        cutoff=pyproject.tool.smokehouse.tools_cutoff,
    )


def pin_file(checkout: Checkout) -> PinFile:
    """Return the lock of the tools, which need not exist."""
    path = checkout.tools_lock()
    return PinFile(path, checkout.relative(path), "--tools")
