"""The schemas of custom resources in tests/data/kubernetes, with which an API server would accept or refuse an object."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cel_expr_python import cel
from jsonschema import Draft202012Validator

_RULES = "x-kubernetes-validations"
DATA = Path(__file__).parents[1] / "data" / "kubernetes"


@dataclass(frozen=True)
class Resource:
    """A custom resource as its definition has it."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    schema: dict[str, Any]

    def problems(self, document: dict[str, Any]) -> list[str]:
        """Return why an API server refuses to create an object: unknown fields, the schema, and its rules in CEL."""
        found = Draft202012Validator(_strict(self.schema)).iter_errors(document)
        wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
        if document["apiVersion"] != f"{self.group}/{self.version}":
            wrong.append(f"apiVersion: {document['apiVersion']} is not {self.group}/{self.version}")
        return [*wrong, *broken_rules(self.schema, document)]


def rules(schema: Any) -> Iterator[str]:
    """Yield all rules in a schema, at any depth."""
    if isinstance(schema, dict):
        validations = schema.get(_RULES)
        yield from (one["rule"] for one in validations if isinstance(one, dict)) if isinstance(validations, list) else ()
        for part in schema.values():
            yield from rules(part)


def broken_rules(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Yield which rules of a schema an object breaks, which has no earlier state: rules about one are for updates.

    An API server evaluates them with cel-go, this with cel-cpp; both follow the language's specification and its tests.
    """
    for one in schema.get(_RULES, ()):
        if "oldSelf" not in one["rule"] and compiled(one["rule"]).eval(data={"self": value}).value() is not True:
            yield f"{path}: {one.get('message', one['rule'])}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name, others)
            if isinstance(inner, dict):
                yield from broken_rules(inner, part, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from broken_rules(schema.get("items", {}), part, f"{path}.{number}")


@cache
def compiled(rule: str) -> cel.Expression:
    """Return a rule that can be evaluated; raises an error where it is invalid."""
    return cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}).compile(rule)


def resources() -> list[Resource]:
    """Return all vendored resources."""
    found = []
    for file in sorted(DATA.glob("*.json")):
        if file.name != "provenance.json":
            read = json.loads(file.read_text())
            names = read["names"]
            found.append(
                Resource(
                    read["group"],
                    read["version"],
                    names["kind"],
                    names["plural"],
                    read["scope"] == "Namespaced",
                    read["schema"],
                )
            )
    return found


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses fields that it does not list, as kubectl's validation does."""
    schema = deepcopy(schema)
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    properties = schema.get("properties")
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(properties, dict) and not open_ended and len(properties) > 0:
        schema["additionalProperties"] = False
    for name, part in schema.items():
        if name == "properties":
            for each in part.values():
                _close(each)
        elif name in ("items", "additionalProperties", "allOf"):
            _close(part)
