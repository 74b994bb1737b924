"""What was measured of the installed versions: the cell of the compatibility matrix that fits them, or the nearest.

The data is `matrix.json` in this package, which `nox -s docs` writes from the measured cells, or a newer file of that format.
"""

import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

CORE = ("torch", "transformers", "deepspeed")
_LARGEST = 8 * 2**20  # bytes; a cell has 200
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]{0,63}")
_SEARCHED = 4 * 2**20  # characters at the end of a log
_LONGEST = 500  # characters of an error


@dataclass(frozen=True)
class Stage:
    """What a ZeRO stage does in a cell: the verdict, and for one that does not work, the known failure and the error."""

    verdict: str
    failure: str
    error: str

    def __str__(self) -> str:
        """Return it in words."""
        because = ": ".join(filter(None, [self.failure, self.error]))
        return f"{self.verdict}{f' ({because})' if because and self.verdict != 'works' else ''}"


@dataclass(frozen=True)
class Cell:
    """What was measured of a model with three versions, on a device (cpu or cuda); `model_type` is that of config.json.

    `python` is the release of Python, such as 3.11, empty where the file does not say it.
    """

    model: str
    model_type: str
    versions: Mapping[str, str]
    device: str
    zero2: Stage
    zero3: Stage
    python: str = ""

    @property
    def works(self) -> bool:
        """Whether both ZeRO stages work."""
        return self.zero2.verdict == self.zero3.verdict == "works"

    @property
    def words(self) -> str:
        """The versions as people write them."""
        return ", ".join(f"{name} {self.versions[name]}" for name in CORE)


@dataclass(frozen=True)
class Fit:
    """The cell that fits installed versions: exactly, or the nearest that was measured."""

    installed: Mapping[str, str]
    cell: Cell
    exact: bool

    def __str__(self) -> str:
        """Return what was measured, in a line."""
        cell = self.cell
        own = ".".join(map(str, sys.version_info[:2]))
        python = f" with Python {cell.python}, not {own}" if cell.python not in ("", own) else ""
        said = f"ZeRO-2 {cell.zero2}, ZeRO-3 {cell.zero3}; measured on {cell.device}{python}"
        if self.exact:
            return f"matrix: {cell.model} with {cell.words}: {said}"
        own = ", ".join(f"{name} {self.installed[name]}" for name in CORE)
        return f"matrix: {cell.model} with {own}: not measured; the nearest, {cell.words}: {said}"

    @property
    def fields(self) -> dict[str, Any]:
        """What `--json` prints."""
        stages = {name: vars(stage) for name, stage in (("zero2", self.cell.zero2), ("zero3", self.cell.zero3))}
        return {
            "model": self.cell.model,
            "model_type": self.cell.model_type,
            "installed": dict(self.installed),
            "exact": self.exact,
            "cell": {**self.cell.versions, "device": self.cell.device, "python": self.cell.python, **stages},
        }


def read(file: Path | None = None) -> list[Cell]:
    """Return the cells in `file`, by default those of this package.

    Raises:
        ValueError: The file is not of this format; says what is wrong.
        OSError: The file cannot be read.
    """
    if file is None:
        data = resources.files(__package__).joinpath("matrix.json").read_bytes()
    else:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"expected at most {_LARGEST >> 20} MiB, found more")
    try:
        models = json.loads(data)["models"]
        return [
            _cell(model, model_type, row) for model_type, fields in models.items() for model in [fields["model"]]
            for row in fields["cells"]
        ]  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected the format of smokehouse_loader/matrix.json, found another ({error})") from None


def _cell(model: Any, model_type: str, row: Any) -> Cell:
    torch, transformers, deepspeed, device, *stages = row
    versions = {"torch": torch, "transformers": transformers, "deepspeed": deepspeed}
    for text in versions.values():
        if not isinstance(text, str) or not _VERSION.fullmatch(text):
            raise ValueError(f"invalid version {text!r}")
    two, three = (Stage(*(_line(part) for part in stage)) for stage in (stages[:3], stages[3:6]))
    return Cell(_line(model), model_type, versions, _line(device), two, three, *map(_line, stages[6:]))


def _line(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"expected text, found {type(text).__name__}")
    return "".join(character if character.isprintable() else "?" for character in text[:_LONGEST])


def installed() -> dict[str, str] | None:
    """Return the installed versions of the packages that make a cell, without local parts; None where one is missing."""
    try:
        return {name: importlib.metadata.version(name).partition("+")[0] for name in CORE}
    except importlib.metadata.PackageNotFoundError:
        return None


def fit(cells: Sequence[Cell], model_type: str, versions: Mapping[str, str]) -> Fit | None:
    """Return the cell of a model that fits `versions`, one on a GPU first, else the nearest; None without any of the model.

    The nearest has the fewest releases between, of those that were measured.
    """
    own = [cell for cell in cells if cell.model_type == model_type]
    if not own:
        return None
    releases = {
        name: sorted({_number(cell.versions[name]) for cell in own} | {_number(versions[name])}) for name in CORE
    }  # fmt: skip

    def distance(cell: Cell) -> int:
        places = (releases[name].index for name in CORE)
        return sum(
            abs(place(_number(cell.versions[name])) - place(_number(versions[name])))
            for name, place in zip(CORE, places, strict=True)
        )

    best = min(own, key=lambda cell: (distance(cell), cell.device != "cuda"))
    return Fit(dict(versions), best, exact=all(best.versions[name] == versions[name] for name in CORE))


def models_in(cells: Sequence[Cell], text: str) -> list[str]:
    """Return the model types of cells that a log is about: those whose module or class it names, or all where it names none."""
    known = list(dict.fromkeys(cell.model_type for cell in cells))
    words = {word.lower() for word in re.findall(r"[A-Za-z][A-Za-z0-9_]*", text[-_SEARCHED:])}
    named = [name for name in known if any(_names(word, name) for word in words)]
    return named or known


def _names(word: str, model_type: str) -> bool:
    """Return whether a word of a log is the module or a class of a model type, such as modeling_qwen2_vl or Qwen2VLModel."""
    for form in (model_type, model_type.replace("_", "")):
        start = word.removeprefix("modeling_").removeprefix("processing_").removeprefix("configuration_")
        if start == form or (start.startswith(form) and not start[len(form)].isdigit() and start[len(form)] != "_"):
            return True
    return False


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
