"""Read YAML and TOML files that people write, with the line of every key for messages, and generated JSON files."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from smokehouse.errors import UserError, first_of, raise_all
from smokehouse.storage import files, strict_json
from smokehouse.storage.files import sha256

_LARGEST = 1 << 20  # bytes; a definition is a page of text, and the parsers are not made for large files

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed file. `lines` has the line, from 1, of each key and list item by its path in `data`."""

    name: str
    data: Any
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Return the line of `path`, or of the nearest parent that has one."""
        found: KeyPath = ()
        for part in path:
            if (*found, part) in self.lines:
                found = (*found, part)
        return self.lines.get(found, 1)

    def error(self, path: KeyPath, message: str) -> UserError:
        """Return an error with `message` for the line of `path`."""
        return UserError(f"{self.name}:{self.line(path)}: {message}")

    def validate(self, model: type[M]) -> M:
        """Return the document as a `model`; raises UserError for all of its mistakes."""
        try:
            return model.model_validate(self.data)
        except ValidationError as invalid:
            found = sorted(
                _without_misspelled(invalid.errors(), model),
                key=lambda error: (self.line(error["loc"]), error["type"] == "missing"),
            )
            raise_all([str(self.error(error["loc"], _explain(error, model))) for error in found])
            raise


def read_yaml(path: Path, name: str) -> Document:
    """Read the YAML file `path`, called `name` in messages; raises UserError."""
    text = _read(path, name)
    lines: dict[KeyPath, int] = {}
    mistakes: list[str] = []
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        data = None if node is None else _to_data(node, (), lines, mistakes)
        raise_all([f"{name}:{mistake}" for mistake in mistakes])
        return Document(name, data, lines)
    except yaml.MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        said = broken.problem or broken.context or "not parsable"
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: invalid YAML: {said}; fix the line") from None
    except yaml.YAMLError as broken:
        raise UserError(f"{name}:1: invalid YAML: {broken}; save it as plain text") from None
    except RecursionError:
        raise UserError(f"{name}:1: nested too deeply; use at most four levels") from None


def read_toml(path: Path, name: str) -> Document:
    """Read the TOML file `path`, called `name` in messages; raises UserError."""
    text = _read(path, name)
    try:
        return Document(name, tomllib.loads(text), dict(_toml_lines(text)))
    except tomllib.TOMLDecodeError as broken:
        said = str(broken)
        found = re.search(r" \(at line (\d+), column \d+\)", said)
        line = found[1] if found else text.count("\n") + 1
        raise UserError(f"{name}:{line}: invalid TOML: {said.split(' (at ')[0]}; fix the line") from None
    except RecursionError:
        raise UserError(f"{name}:1: nested too deeply; use at most four levels") from None


def read_json(path: Path, name: str, model: type[M], remedy: str) -> tuple[M, str]:
    """Read the generated JSON file `path`, called `name` in messages, as a `model`; return it and the file's SHA-256.

    Raises UserError ending in `remedy`.
    """
    try:
        data = files.read(path)
        return model.model_validate(strict_json.parse(data)), sha256(data)
    except FileNotFoundError:
        raise UserError(f"{name}: not found; {remedy}") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken.strerror}); {remedy}") from None
    except ValueError as invalid:
        raise UserError(f"{name}: {first_of(invalid)}; {remedy}") from None


def _read(path: Path, name: str) -> str:
    try:
        with files.open_regular(path) as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: not found; create it, or restore it with git") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken.strerror}); make it a readable file") from None
    if len(data) > _LARGEST:
        raise UserError(f"{name}: expected at most {_LARGEST >> 20} MiB, found more; shorten it")
    try:
        return data.decode()
    except UnicodeDecodeError as broken:
        line = data.count(b"\n", 0, broken.start) + 1
        raise UserError(f"{name}:{line}: invalid UTF-8; save it as UTF-8") from None


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses aliases, with which a page of text can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        node = None if self.check_event(yaml.AliasEvent) else super().compose_node(parent, index)
        if node is None:
            raise yaml.MarkedYAMLError(problem="aliases are refused", problem_mark=self.get_mark())
        return node


def _to_data(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], mistakes: list[str]) -> Any:
    """Return `node` as dicts, lists and text. Adds the line of everything in it to `lines`, what is not text to `mistakes`."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in mapping:
                problem = f"duplicate key {key.value!r}" if isinstance(key, yaml.ScalarNode) else "expected text as key"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[*path, key.value] = key.start_mark.line + 1
            mapping[key.value] = _to_data(value, (*path, key.value), lines, mistakes)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_to_data(item, (*path, index), lines, mistakes) for index, item in enumerate(node.value)]
    if node.tag != "tag:yaml.org,2002:str":  # `3.10` without quotes is the number 3.1
        problem = (
            f"expected text, found {node.value}; put it in quotes" if node.value else "expected a value, found none; add it"
        )
        mistakes.append(f"{node.start_mark.line + 1}: {problem}")
    return node.value


def _toml_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield the line of each table and key of a TOML text without dotted or quoted keys."""
    table: KeyPath = ()
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


def _without_misspelled(errors: Sequence[Any], model: type[BaseModel]) -> Iterator[Any]:
    """Yield `errors` without those that a misspelled key has a second time: as missing under its right name."""
    meant = {
        (*path, close)
        for *path, key in (error["loc"] for error in errors if error["type"] == "extra_forbidden")
        for close in difflib.get_close_matches(str(key), _keys(model, tuple(path)), n=1)
    }
    yield from (error for error in errors if error["type"] != "missing" or error["loc"] not in meant)


def _explain(error: Any, model: type[BaseModel]) -> str:
    """Return a message for one pydantic error: what is wrong and what to do."""
    path, found = error["loc"], error["input"]
    key = ".".join(str(part) for part in path)
    match error["type"]:
        case "extra_forbidden":
            known = _keys(model, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            return f"unknown key {path[-1]!r}; {hint}known keys: {', '.join(known)}"
        case "missing":
            return f"{key} not found; add it"
        case "value_error":
            return str(error["ctx"]["error"])
        case "literal_error":
            return f"{key}: found {found!r}; use {error['ctx']['expected']}"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; fix it"


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys of `model` at `path`."""
    for part in path:
        if part in model.model_fields:
            model = next(_models(model.model_fields[str(part)].annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
