"""Who owns the files of an environment: no two packages one path, and what is built from source nothing of others.

The build of an image reads this file, too, from a build context: it imports nothing but the standard library.

See: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

import base64
import configparser
import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Where programs of the machine or of the base are; what is built must not take the name of a compiled one.
SYSTEM = (Path("/usr/bin"), Path("/bin"), Path("/usr/sbin"), Path("/sbin"))
_DRIVER = re.compile(r"nvidia-.*")  # programs that a container gets from the host with its driver
# Programs that environments have of their own, or that users start without a thought; only a package of that name has one.
_RESERVED = re.compile(
    r"(python|pypy|pip|pydoc|idle|activate|deactivate|uv|uvx|conda|mamba|nvcc|gcc|g\+\+|cc|ld|sh|bash|env)([\d._-].*)?"
)
# Names beside its own under which a project publishes scripts. See: the scripts in setup.py of https://github.com/deepspeedai/DeepSpeed
_ALSO_CALLED = {"deepspeed": ("ds", "dsr")}
_ENTRY_POINTS = "entry_points.txt"
_AT_START = {"sitecustomize.py", "usercustomize.py"}  # Python imports them by itself, as what is in .pth files
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class _Package:
    """An installed Python package: its .dist-info, canonical name, and SHA-256 in hex by path in the environment.

    A file without a hash has an empty one. `outside` has the paths that lead out of the environment, `scripts` the names of
    the scripts that its metadata declare.
    """

    info: str
    name: str
    files: Mapping[str, str]
    outside: tuple[str, ...]
    scripts: AbstractSet[str] = frozenset()


def problems(prefix: Path, python: str, built: AbstractSet[str], system: Sequence[Path] = SYSTEM) -> list[str]:
    """Return what is wrong with who owns which file of the environment of `python` in `prefix`, a sentence each.

    `built` has the canonical names of the packages that were built from source; `system` are the folders of other programs.
    Python packages are known by their RECORD, conda packages by conda-meta.
    """
    site = f"lib/python{python}/site-packages/"
    packages = [_read(info, site) for info in sorted((prefix / site).glob("*.dist-info"))]
    conda = _conda_files(prefix)
    found = [problem for package in packages for problem in _foreign(package, site)]
    found += _twice(packages, conda, site)
    for package in packages:
        if package.name in built:
            others = [*(other.files for other in packages if other is not package)]
            taken = {path for path, (owner, _) in conda.items() if owner != package.name}.union(*others)
            found += _unconfined(package, site, python, taken, system)
    return found


def _read(info: Path, site: str) -> _Package:
    """Read the RECORD of a package; one that cannot be read has no files, which those who compare files report."""
    found: dict[str, str] = {}
    outside = []
    try:
        rows = [row for row in csv.reader(_text(info / "RECORD").splitlines()) if len(row) == 3]
    except (OSError, ValueError, csv.Error):
        rows = []
    for path, hashed, _ in rows:
        place = os.path.normpath(site + path) if not path.startswith("/") else path
        if place.startswith(("../", "/")):
            outside.append(path)
        else:
            found[place] = _hex(hashed)
    return _Package(info.name, canonical(info.name.partition("-")[0]), found, tuple(outside), _scripts(info))


class _EntryPoints(configparser.ConfigParser):
    """A parser of entry points, whose names keep their case."""

    def optionxform(self, optionstr: str) -> str:
        """Return a name as it is."""
        return optionstr


def _text(path: Path) -> str:
    """Return the text of a file; raises OSError where there is none, as for a FIFO, which would block, or a device."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_text("utf-8")


def _scripts(info: Path) -> set[str]:
    """Return the names of the scripts that the metadata of a package declare, none of one that cannot be read.

    See: https://packaging.python.org/en/latest/specifications/entry-points/
    """
    parser = _EntryPoints(delimiters=("=",), interpolation=None)
    try:
        parser.read_string(_text(info / _ENTRY_POINTS))
    except (OSError, ValueError, configparser.Error):
        return set()
    sections = ("console_scripts", "gui_scripts")
    return {name for section in sections if parser.has_section(section) for name, _ in parser.items(section)}


def _hex(text: str) -> str:
    """Return the SHA-256 of a row of RECORD in hex, the text itself where it is another hash."""
    algorithm, _, digest = text.partition("=")
    try:
        return base64.urlsafe_b64decode(f"{digest}==").hex() if algorithm == "sha256" else text
    except ValueError:
        return text


def canonical(name: str) -> str:
    """Return the canonical name of a package.

    See: https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def _conda_files(prefix: Path) -> dict[str, tuple[str, str]]:
    """Return the name of the conda package that owns each path, and the SHA-256 that its file has, empty where unknown."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            record = json.loads(_text(path))
            entries = [(str(entry["_path"]), entry) for entry in record["paths_data"]["paths"]]
            name = canonical(str(record["name"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        for place, entry in entries:
            found[place] = (name, str(entry.get("sha256_in_prefix") or entry.get("sha256") or ""))
    return found


def _foreign(package: _Package, site: str) -> Iterator[str]:
    """Yield the paths outside of the environment, and those in the metadata of another package."""
    for path in package.outside:
        yield f"{path!r}: listed by {package.info}, expected a path in the environment"
    for path in package.files:
        first, _, rest = path.removeprefix(site).partition("/")
        if path.startswith(site) and rest and first.endswith(".dist-info") and first != package.info:
            yield f"{path}: metadata of another package, listed by {package.info}"


def _twice(packages: Sequence[_Package], conda: Mapping[str, tuple[str, str]], site: str) -> Iterator[str]:
    """Yield the paths that two packages own with different contents; what is the same in both is nobody's loss."""
    owners: dict[str, dict[str, str]] = defaultdict(dict)
    for package in packages:
        by_conda = f"{site}{package.info}/METADATA" in conda
        for path, sha256 in package.files.items():
            owners[path][package.info] = sha256
            if path in conda and conda[path][0] != package.name and not by_conda and not path.endswith(".pyc"):
                owners[path][f"conda package {conda[path][0]}"] = conda[path][1]
    for path, found in owners.items():
        if len({*found.values()}) > 1:
            yield f"{path}: expected one owner, found different files of {' and '.join(sorted(found))}"


def _unconfined(package: _Package, site: str, python: str, taken: AbstractSet[str], system: Sequence[Path]) -> Iterator[str]:
    """Yield the files of a package built from source that are not its own: others have `taken` paths."""
    regular = {path.removeprefix(site).partition("/")[0] for path in taken if re.fullmatch(f"{site}[^/]+/__init__\\.py", path)}
    headers = re.compile(rf"include/(site/)?python{python}/{re.escape(package.name)}/", re.IGNORECASE)
    for path in package.files:
        top = PurePosixPath(path.removeprefix(site)).parts[0]
        if path.startswith(site):
            # A folder without __init__.py is a namespace, which packages share.
            own = top == package.info or not (top.endswith(".pth") or top in _AT_START or top in regular)
        elif path.startswith("bin/"):
            own = path not in taken and _is_own_script(package, path[4:], site) and not _is_program(path[4:], system)
        else:
            own = path.startswith("share/") or headers.match(path.replace("_", "-")) is not None
        if not own:
            yield f"{path}: built from source by {package.name}, expected its own modules and scripts alone"


def _is_own_script(package: _Package, script: str, site: str) -> bool:
    """Return whether a script is one that the metadata of its package declare, or called as the package or a module of it."""
    modules = {path.removeprefix(site).partition("/")[0].partition(".")[0] for path in package.files if path.startswith(site)}
    called = {package.name, *_ALSO_CALLED.get(package.name, ()), *map(canonical, modules - {""})}
    name = canonical(script)
    has_name = any(name == own or name.startswith(f"{own}-") for own in called)
    if "/" in script or _DRIVER.fullmatch(script) or (_RESERVED.fullmatch(script) and package.name not in (name, script)):
        return False
    return has_name or script in package.scripts


def _is_program(name: str, system: Sequence[Path]) -> bool:
    """Return whether one of the folders has a compiled program called `name`."""
    for folder in system:
        try:
            with (folder / name).open("rb") as file:
                if file.read(len(_ELF)) == _ELF:
                    return True
        except OSError:
            continue
    return False
