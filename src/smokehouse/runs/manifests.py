"""Render the manifests in cluster/kubernetes, as `kubectl kustomize` does, with the values of one run."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from smokehouse.errors import UserError

Document = dict[str, Any]
_KEYS = {"apiVersion", "kind", "resources", "nameSuffix", "patches"}
_RESTORE = "restore cluster/ of this checkout, or install Smokehouse again"
# Whatever parses YAML in C is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def build(folder: Path) -> list[Document]:
    """Return what kustomize builds of `folder`: its resources, with a suffix of names and patches. Raises UserError.

    Of kustomize only what cluster/kubernetes uses is understood; anything else is refused. See: RFC 6902 for the patches.
    """
    [recipe] = read(folder / "kustomization.yaml")
    if strangers := recipe.keys() - _KEYS:
        expected, found = ", ".join(sorted(_KEYS)), ", ".join(sorted(strangers))
        raise UserError(f"{folder}/kustomization.yaml: expected {expected}, found {found}; {_RESTORE}")
    documents: list[Document] = []
    for name in recipe["resources"]:
        place = (folder / name).resolve()
        documents += build(place) if place.is_dir() else read(place)
    for patch in recipe.get("patches", []):
        for document in documents:
            if document["kind"] == patch["target"]["kind"]:
                for operation in read(folder / patch["path"])[0]:
                    _apply(document, operation, folder / patch["path"])
    for document in documents:
        document["metadata"]["name"] += recipe.get("nameSuffix", "")
    return documents


def read(file: Path) -> list[Any]:
    """Return the documents in a file of YAML; raises UserError."""
    try:
        # Anchors make one object of several: patches must change only one of them.
        return [deepcopy(_separate(document)) for document in yaml.load_all(file.read_text("utf-8"), _LOADER)]
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: expected a manifest, found an error ({said}); {_RESTORE}") from None


def _separate(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _separate(part) for name, part in value.items()}
    return [_separate(part) for part in value] if isinstance(value, list) else value


def _apply(document: Document, operation: Mapping[str, Any], file: Path) -> None:
    """Apply one operation of a JSON patch, add or replace; raises UserError."""
    *path, last = (part.replace("~1", "/").replace("~0", "~") for part in str(operation["path"]).split("/")[1:])
    at: Any = document
    try:
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if isinstance(at, list) and last == "-":
            at.append(operation["value"])
        elif isinstance(at, list) and operation["op"] == "add":
            at.insert(int(last), operation["value"])
        else:
            place = int(last) if isinstance(at, list) else last
            if operation["op"] == "replace":
                at[place]  # which has to exist
            at[place] = operation["value"]
    except (LookupError, ValueError) as error:
        raise UserError(f"{file}: {operation['path']}: expected it in the manifest, not found ({error}); {_RESTORE}") from None


def pod_of(document: Mapping[str, Any]) -> Document:
    """Return the specification of the pods of a JobSet or a training runtime, which can be changed."""
    spec = document["spec"] if document["kind"] == "JobSet" else document["spec"]["template"]["spec"]
    pod: Document = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return pod


def job_of(document: Mapping[str, Any]) -> Document:
    """Return the specification of the Job whose pods are the nodes of a JobSet or a training runtime."""
    spec = document["spec"] if document["kind"] == "JobSet" else document["spec"]["template"]["spec"]
    job: Document = spec["replicatedJobs"][0]["template"]["spec"]
    return job


def containers_of(pod: Mapping[str, Any]) -> list[Document]:
    """Return the containers of a pod, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def set_variable(container: Document, name: str, value: str) -> None:
    """Set an environment variable of a container, in place of one with this name."""
    container["env"] = [one for one in container["env"] if one["name"] != name] + [{"name": name, "value": value}]


def as_yaml(documents: Sequence[Mapping[str, Any]], comment: Callable[[Mapping[str, Any]], str] = lambda _: "") -> str:
    """Return documents as YAML, each with a comment above it."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    texts = []
    for document in documents:
        said = comment(document)
        text = yaml.dump(document, Dumper=dumper, sort_keys=False, width=4096)
        texts.append(f"# {said}\n{text}" if said else text)
    return "---\n".join(texts)
