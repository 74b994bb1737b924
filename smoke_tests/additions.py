"""Packages beside a lock: what `install --with` and `--with-project` recorded in the installation that this Python runs in.

Imports no torch. See: docs/reference/environments.md, installations.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

MARKER = ".smokehouse.json"


@dataclass(frozen=True)
class Addition:
    """A package that was added to an installation; `by` is the option that did it."""

    name: str
    version: Version
    by: str


def find(prefix: Path | None = None) -> dict[str, Addition]:
    """Return canonical name -> what was added to the installation in `prefix`, by default this Python's.

    Empty where there is no marker, or one that cannot be read: what it fails to list is then no part of the lock.
    """
    try:
        marker = json.loads((Path(sys.prefix if prefix is None else prefix) / MARKER).read_text("utf-8"))
        return {found.name: found for found in _listed(marker)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidVersion):
        return {}


def _listed(marker: Mapping[str, Any]) -> Iterator[Addition]:
    for file in marker.get("with") or []:
        yield _addition(file, "--with")
    if project := marker.get("project"):
        by = f"--with-project {project['path']}"
        yield from (_addition(file, by) for file in [*project["added"], project])


def _addition(file: Mapping[str, Any], by: str) -> Addition:
    return Addition(str(canonicalize_name(file["name"])), Version(str(file["version"])), by)
