"""Additions: what a user installs beside a lock, by hash, recorded in the marker of the installation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from smokehouse.installs.extra_wheels import FetchedWheel
from smokehouse.installs.project import Project, files_of
from smokehouse.locks import LockedFile

# The keys of a marker with the wheels of --with, and with the project of --with-project.
WITH = "with"
PROJECT = "project"


@dataclass(frozen=True)
class Additions:
    """The wheels of --with, and the project of --with-project."""

    wheels: tuple[FetchedWheel, ...] = ()
    project: Project | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What a marker says of them; empty without any."""
        found: dict[str, Any] = {WITH: [wheel.file.model_dump() for wheel in self.wheels]} if self.wheels else {}
        return found | ({PROJECT: self.project.record} if self.project else {})

    @property
    def files(self) -> tuple[LockedFile, ...]:
        """The files of packages that the lock lacks."""
        return (*(wheel.file for wheel in self.wheels), *(self.project.added if self.project else ()))


def recorded_versions(marker: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the packages that a marker records as added: version, and what added each, by canonical name."""
    found = {canonicalize_name(file.name): (file.version, "--with") for file in files_of({WITH: marker.get(WITH) or []}, WITH)}
    project = marker.get(PROJECT)
    if isinstance(project, dict):
        origin = f"--with-project {project.get('path')}"
        found |= {canonicalize_name(file.name): (file.version, origin) for file in files_of(project, "added")}
        found[canonicalize_name(str(project.get("name")))] = (str(project.get("version")), origin)
    return {str(name): origin for name, origin in found.items()}
