"""Grids: which combinations of versions are to be measured for a model, as `matrix/<model>.toml` and options say."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Annotated

from packaging import version
from pydantic import BaseModel, ConfigDict, Field, field_validator

from smokehouse.checkout import Checkout
from smokehouse.environments.documents import read_toml
from smokehouse.environments.requirement import parse
from smokehouse.errors import UserError
from smokehouse.matrix.model import CORE, Version, Versions

_Axis = Annotated[list[Version], Field(min_length=1, max_length=100)]
_MOST = 10_000  # cells of a grid


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Model):
    """Versions of which every combination is a cell."""

    torch: _Axis
    transformers: _Axis
    deepspeed: _Axis

    @field_validator("torch", "transformers", "deepspeed")
    @classmethod
    def _versions(cls, values: list[str]) -> list[str]:
        for value in values:
            release(value)
        return list(dict.fromkeys(values))


class Definition(_Model):
    """The file `matrix/<model>.toml`: the model, what else a cell has, and the grid.

    `packages` are requirements beside the three; `cutoff` is the day until which packages count, as in stack.toml.
    """

    model: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")
    family: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")
    python: str = Field(pattern=r"^3\.\d{1,2}$")
    platform: str = Field(pattern=r"^[\w-]{1,64}$")
    cutoff: date
    packages: list[str] = Field(max_length=100)
    grid: list[Block] = Field(min_length=1, max_length=100)

    @field_validator("packages")
    @classmethod
    def _requirements(cls, values: list[str]) -> list[str]:
        for value in values:
            parse(value)
        return values


@dataclass(frozen=True)
class Grid:
    """A definition, the name of its files, and the cells that were requested, in the order in which they are measured."""

    name: str
    definition: Definition
    cells: tuple[Versions, ...]


def names(checkout: Checkout) -> list[str]:
    """Return the names of all grids, sorted."""
    return sorted(path.stem for path in checkout.matrix_folder().glob("*.toml"))


def read(checkout: Checkout, model: str, chosen: Mapping[str, Sequence[str]] | None = None) -> Grid:
    """Return the grid of `model`: all of it, or the part that `chosen` versions of some packages leave.

    A version that the grid does not have is combined with the others of every block. Raises UserError.
    """
    name = find(checkout, model)
    definition = _definition(checkout, name)
    return Grid(name, definition, _cells(definition, chosen or {}))


def find(checkout: Checkout, model: str) -> str:
    """Return the name of the grid of `model`, which may be its name, family or id on a hub; raises UserError."""
    known = names(checkout)
    if found := best_match(model, known):
        return found
    families = {_definition(checkout, name).family: name for name in known}
    if found := best_match(model, [*families]):
        return families[found]
    listed = ", ".join(known) or "none"
    raise UserError(f"--model {model}: expected one of {listed}; add {checkout.relative(checkout.matrix_folder())}/NAME.toml")


def family(checkout: Checkout, name: str) -> str:
    """Return the model family of a grid; raises UserError where it is invalid."""
    return _definition(checkout, name).family


def _definition(checkout: Checkout, name: str) -> Definition:
    path = checkout.matrix_folder() / f"{name}.toml"
    return read_toml(path, checkout.relative(path)).validate(Definition)


def best_match(model: str, known: Sequence[str]) -> str | None:
    """Return which of the `known` names a model has, by its letters and digits: the longest that its own begins with."""
    wanted = _letters(model.rpartition("/")[2])
    fitting = [name for name in known if wanted and wanted.startswith(_letters(name))]
    return max(fitting, key=lambda name: len(_letters(name)), default=None)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def release(text: str) -> version.Version:
    """Return a version as it is compared; raises ValueError where it is no release."""
    try:
        found = version.Version(text)
    except version.InvalidVersion:
        raise ValueError(f"expected a version, found {text!r}; write it like 4.51.3") from None
    if found.is_devrelease or found.local:
        raise ValueError(f"expected a release, found {text!r}; specify a version of the index")
    return found


def public(text: str) -> str:
    """Return a version without its local part, which says how a wheel was built, such as +cu124."""
    return text.partition("+")[0]


def _cells(definition: Definition, chosen: Mapping[str, Sequence[str]]) -> tuple[Versions, ...]:
    """Return the cells of a definition that `chosen` leaves, in order."""
    known = {name: {value for block in definition.grid for value in getattr(block, name)} for name in CORE}
    found: dict[Versions, None] = {}
    for block in definition.grid:
        axes = []
        for name in CORE:
            values: list[str] = getattr(block, name)
            if requested := chosen.get(name):
                values = [value for value in values if value in requested]
                values += [value for value in requested if value not in known[name]]
            axes.append(values)
        found |= {Versions(torch=a, transformers=b, deepspeed=c): None for a, b, c in product(*axes)}
    if not found:
        text = " ".join(f"--{name} {','.join(values)}" for name, values in chosen.items() if values)
        raise UserError(f"{text}: expected versions of one block of the grid, found none that has all; choose other versions")
    if len(found) > _MOST:
        raise UserError(f"matrix: expected at most {_MOST} cells, found {len(found)}; choose fewer versions")
    return tuple(found)


def folder_of(checkout: Checkout, name: str) -> Path:
    """Return the folder for environments and evidence of the cells of a grid."""
    return checkout.build / "matrix" / name
