"""The schemas of custom resources in tests/data/kubernetes, with which an API server would accept or refuse an object."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

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
        """Return why an API server refuses an object, unknown fields included; rules in CEL are not evaluated."""
        found = Draft202012Validator(_strict(self.schema)).iter_errors(document)
        wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
        if document["apiVersion"] != f"{self.group}/{self.version}":
            wrong.append(f"apiVersion: {document['apiVersion']} is not {self.group}/{self.version}")
        return wrong


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
