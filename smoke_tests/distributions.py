"""What is installed where this Python looks: distributions by their metadata, and the files that they installed.

Imports no torch, and writes nothing.
"""

import base64
import csv
import hashlib
import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_SUFFIXES = (".dist-info", ".egg-info", ".egg-link")


@dataclass(frozen=True)
class Distribution:
    """One installed distribution: its canonical name, and where its metadata is."""

    name: str
    version: Version
    info: Path
    origin: str = ""  # what it was installed from in place of an index: editable, or a path or URL; empty otherwise

    @property
    def site(self) -> Path:
        """The folder that its modules are in."""
        return self.info.parent

    @property
    def editable(self) -> bool:
        """Whether its modules are imported from a source tree."""
        return self.origin.startswith("editable")

    def edited(self, files: Collection[str]) -> tuple[list[str], int]:
        """Return those of `files`, as absolute paths, that differ from its RECORD, and how many it does not list.

        Raises OSError without a RECORD.

        See: https://packaging.python.org/en/latest/specifications/recording-installed-packages
        """
        wanted, changed, site = set(files), [], str(self.site)
        for row in csv.reader((self.info / "RECORD").read_text("utf-8", errors="replace").splitlines()):
            if len(row) < 2 or (path := f"{site}/{row[0]}") not in wanted:  # a full disk may have cut it
                continue
            wanted.remove(path)
            if row[1].startswith("sha256=") and row[1] != f"sha256={_urlsafe_sha256(Path(path))}":
                changed.append(path)
        return changed, len(wanted)


@dataclass(frozen=True)
class Installed:
    """All distributions that imports can find: of several with one name the first, as Python does.

    `problems`, by name, leave open what is imported, `notes` are for people to know.
    """

    distributions: dict[str, Distribution] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def versions(self) -> dict[str, str]:
        """Canonical name -> version, sorted."""
        return {name: str(found.version) for name, found in sorted(self.distributions.items())}


def find(folders: Sequence[str] | None = None) -> Installed:
    """Return what is installed in `folders`, by default where Python looks for modules, in that order."""
    installed = Installed()
    for folder in dict.fromkeys(Path(entry).resolve() for entry in (sys.path if folders is None else folders) if entry):
        if folder.name == "_vendor":
            continue  # setuptools appends its own copies of other packages to the path when it is imported
        here: dict[str, Distribution] = {}
        # The folders' names, not their METADATA: parsing that of a hundred packages takes a second.
        for info in sorted(path for path in _entries(folder) if path.suffix in _SUFFIXES):
            if not (found := _read(info)):
                installed.notes.append(f"{info}: expected a name and a version, found an invalid one")
            elif first := here.get(found.name):
                twice = f"{found.name} is installed twice in {folder} ({first.version} and {found.version})"
                installed.problems[found.name] = twice
            elif first := installed.distributions.get(found.name):
                if first.editable and first.version == found.version:
                    continue  # the source tree that it is
                installed.notes.append(
                    f"{found.name} {found.version} in {folder} is shadowed by {first.version} in {first.site}"
                )
            else:
                here[found.name] = found
        for found in here.values():
            if found.origin:
                installed.notes.append(f"{found.name} {found.version} is {found.origin}")
            if found.version.is_devrelease:
                installed.notes.append(f"{found.name} {found.version} is a development version")
        installed.distributions.update(here)
    return installed


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # an archive, or no folder any more
        return []


def _read(info: Path) -> Distribution | None:
    stem, _, number = info.stem.partition("-")
    tree = _source_tree(info)
    # In a source tree, setuptools names the folder without a version.
    text = number.partition("-")[0] or _version_in(Path(tree, f"{stem}.egg-info") if tree else info)
    try:
        version = Version(text)
    except InvalidVersion:
        return None
    return Distribution(canonicalize_name(stem), version, info, f"editable, from {tree}" if tree else _origin(info))


def _source_tree(info: Path) -> str:
    """Return the folder that an .egg-link refers to; empty for all others, and for one that refers to none."""
    if info.suffix != ".egg-link":
        return ""
    try:
        return info.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _version_in(info: Path) -> str:
    """Return the version that the metadata in a folder has; empty where there is none."""
    try:
        text = (info / "PKG-INFO").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^Version:[ \t]*(\S+)", text.partition("\n\n")[0], re.MULTILINE)
    return found[1] if found else ""


def _origin(info: Path) -> str:
    """Return what a distribution was installed from, where that was no index. See: PEP 610."""
    try:
        direct = json.loads((info / "direct_url.json").read_text("utf-8"))
        url, installer = str(direct["url"]), info / "INSTALLER"
        if (direct.get("dir_info") or {}).get("editable"):
            return f"editable, from {url}"
        # conda's packages keep the folder that they were built in.
        if installer.is_file() and installer.read_text().strip() == "conda":
            return ""
        commit = (direct.get("vcs_info") or {}).get("commit_id")
        return f"installed from {url}{f' at {commit}' if commit else ''}"
    except (FileNotFoundError, NotADirectoryError):  # an .egg-info may be a file
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "installed from an unknown place: direct_url.json is invalid"


def _urlsafe_sha256(file: Path) -> str:
    """Return a file's SHA-256 as a wheel's RECORD has it. See: PEP 427."""
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
