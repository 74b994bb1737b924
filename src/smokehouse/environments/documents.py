"""Hand-written YAML and TOML files, read with the line of every key, so that an error can name it."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from smokehouse.errors import UserError

_LARGEST = 1 << 20  # bytes; a definition is a page of text, and the parsers are not made for more

Place = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed file. `lines` gives the line, from 1, of each key and list item by its place in `data`."""

    name: str
    data: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """Return the line of `place`, or of the nearest thing around it."""
        found: Place = ()
        for part in place:
            if (*found, part) in self.lines:
                found = (*found, part)
        return self.lines.get(found, 1)

    def error(self, place: Place, message: str) -> UserError:
        """Return the error that says `message` of `place`."""
        return UserError(f"{self.name}:{self.line(place)}: {message}")

    def validate(self, model: type[M]) -> M:
        """Return the document as a `model`; raises UserError for the first thing that is wrong with it."""
        try:
            return model.model_validate(self.data)
        except ValidationError as invalid:
            # A mistyped key is missing under its right name too.
            first = min(invalid.errors(), key=lambda error: (error["type"] == "missing", self.line(error["loc"])))
            raise self.error(first["loc"], _explain(first, model)) from None


def read_yaml(path: Path, name: str) -> Document:
    """Read the YAML file `path`, called `name` in messages; raises UserError."""
    text = _read(path, name)
    lines: dict[Place, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return Document(name, None if node is None else _plain(node, name, (), lines), lines)
    except yaml.MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        said = broken.problem or broken.context or "not readable"
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {said}; mend the line") from None
    except yaml.YAMLError as broken:
        raise UserError(f"{name}:1: not YAML: {broken}; write it as plain text") from None
    except RecursionError:
        raise UserError(f"{name}:1: nested too deeply; a definition needs four levels") from None


def read_toml(path: Path, name: str) -> Document:
    """Read the TOML file `path`, called `name` in messages; raises UserError."""
    text = _read(path, name)
    try:
        return Document(name, tomllib.loads(text), dict(_toml_lines(text)))
    except tomllib.TOMLDecodeError as broken:
        said = str(broken)
        found = re.search(r" \(at line (\d+), column \d+\)", said)
        line = found[1] if found else text.count("\n") + 1
        raise UserError(f"{name}:{line}: not TOML: {said.split(' (at ')[0]}; mend the line") from None
    except RecursionError:
        raise UserError(f"{name}:1: nested too deeply; a definition needs four levels") from None


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; every environment has environment.yml and stack.toml") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken.strerror}); make it a readable file") from None
    if len(data) > _LARGEST:
        raise UserError(f"{name}: larger than {_LARGEST >> 20} MiB; a definition is a page of text")
    try:
        return data.decode()
    except UnicodeDecodeError as broken:
        line = data.count(b"\n", 0, broken.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8; save it as UTF-8") from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases, with which a page of text can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        node = None if self.check_event(yaml.AliasEvent) else super().compose_node(parent, index)
        if node is None:
            raise yaml.MarkedYAMLError(problem="aliases are refused", problem_mark=self.get_mark())
        return node


def _plain(node: yaml.Node, name: str, place: Place, lines: dict[Place, int]) -> Any:
    """Return `node` as dicts, lists and text, and note the line of everything in it."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in mapping:
                problem = f"duplicate key {key.value!r}" if isinstance(key, yaml.ScalarNode) else "a key must be text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[*place, key.value] = key.start_mark.line + 1
            mapping[key.value] = _plain(value, name, (*place, key.value), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, name, (*place, index), lines) for index, item in enumerate(node.value)]
    if node.tag != "tag:yaml.org,2002:str":  # `3.10` without quotes is the number 3.1
        problem = f"{node.value} is not text; put it in quotes" if node.value else "a value is missing; add it"
        raise UserError(f"{name}:{node.start_mark.line + 1}: {problem}")
    return node.value


def _toml_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Yield the line of each table and key of a TOML text without dotted or quoted keys."""
    table: Place = ()
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            index = seen.get(found[1], -1) + 1
            seen[found[1]] = index
            table = (*found[1].split("."), index)
        elif found := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            table = tuple(found[1].split("."))
        elif found := re.match(r"\s*([\w-]+)\s*=", line):
            yield (*table, found[1]), number
            continue
        else:
            continue
        for depth in range(1, len(table)):
            yield table[:depth], number
        yield table, number


def _explain(error: Any, model: type[BaseModel]) -> str:
    """Word one pydantic error: what is wrong and what to do."""
    place, given = error["loc"], error["input"]
    key = ".".join(str(part) for part in place)
    match error["type"]:
        case "extra_forbidden":
            known = _keys(model, place[:-1])
            close = difflib.get_close_matches(str(place[-1]), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            return f"unknown key {place[-1]!r}; {hint}known here: {', '.join(known)}"
        case "missing":
            return f"{key} is missing; add it"
        case "value_error":
            return str(error["ctx"]["error"])
        case "literal_error":
            return f"{key} is {given!r}; use {error['ctx']['expected']}"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; mend it"


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """Return the keys that `model` knows at `place`."""
    for part in place:
        if part in model.model_fields:
            model = next(_models(model.model_fields[str(part)].annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
