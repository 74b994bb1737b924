"""Select the file of a release that an installer takes on a platform."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Artefact:
    """One file of a release. `size` is in bytes, 0 if the index does not list it."""

    name: str
    url: str
    sha256: str
    size: int


def artefacts(entries: list[dict[str, Any]]) -> list[Artefact]:
    """Return the files of a pylock.toml package, given its `wheels` or its `sdist`; raises KeyError without a hash."""
    found = []
    for entry in entries:
        url = entry.get("url") or entry["path"]
        name = entry.get("name") or unquote(url.split("#")[0].rsplit("/", 1)[-1])
        found.append(Artefact(name, url, entry["hashes"]["sha256"], entry.get("size", 0)))
    return found


def ranking(python: str, platform: str) -> dict[Tag, int]:
    """Return each wheel tag that CPython `python` on `platform` can use, best first by rank from 0.

    `platform` is named as uv does, such as x86_64-manylinux_2_28.
    """
    machine, _, libc = platform.partition("-manylinux_2_")
    platforms = []
    for minor in range(int(libc), 4 if machine == "x86_64" else 16, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in _LEGACY:
            platforms.append(f"{_LEGACY[minor]}_{machine}")
    platforms.append(f"linux_{machine}")
    version = tuple(int(part) for part in python.split("."))
    interpreter = f"cp{python.replace('.', '')}"
    tags = [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def best_wheel(wheels: list[Artefact], ranks: dict[Tag, int]) -> Artefact | None:
    """Return the wheel that an installer takes: the best tag, then the highest build number; None if none is compatible."""
    compatible = []
    for wheel in wheels:
        try:
            _, _, build, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:  # installers ignore these too
            continue
        if usable := [ranks[tag] for tag in tags if tag in ranks]:
            compatible.append((-min(usable), build, wheel.name, wheel))
    return max(compatible)[-1] if compatible else None


def why_incompatible(wheels: list[Artefact], python: str, platform: str) -> str | None:
    """Return why none of a release's wheels for this machine type is compatible; None if it has no such wheel.

    `python` and `platform` are as for `ranking`.
    """
    machine, _, libc = platform.partition("-manylinux_2_")
    pythons, libcs = set(), set()
    for wheel in wheels:
        try:
            *_, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        for tag in tags:
            if found := re.fullmatch(rf"manylinux(?:_2_(\d+)|(1|2010|2014))_{machine}", tag.platform):
                required = int(found[1]) if found[1] else next(g for g, name in _LEGACY.items() if name.endswith(found[2]))
                if tag in ranking(python, f"{machine}-manylinux_2_{required}"):
                    libcs.add(required)
                else:
                    pythons.add(tag.interpreter)
    if libcs:
        return f"expected wheels for glibc 2.{libc} or older, found glibc 2.{min(libcs)}"
    if pythons:
        return f"expected wheels for Python {python}, found {', '.join(sorted(pythons))}"
    return None
