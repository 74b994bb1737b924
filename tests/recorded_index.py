"""A package index as it was recorded: what uv asked the real one while it resolved an environment, served on 127.0.0.1.

Record an environment again after its definition has changed: `PYTHONPATH=src python -m tests.recorded_index NAME`. That is the
only time that the real index is asked; the test that reads the record compares the committed lock with what uv makes of it.

A record has, of each package, every version that uv looked at and the next one after the cut-off, with a wheel for another
platform beside those that fit: names, sizes, times and hashes of the real files, and their metadata. uv reads nothing else of a
wheel while it resolves; of a source distribution it is told the metadata by its configuration, and asks for no file.
"""

import io
import json
import os
import re
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from unittest import mock

from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from benchmarks import mirror
from smokehouse import environments
from smokehouse.checkout import Checkout
from smokehouse.environments.inputs import Inputs
from smokehouse.locks.solvers import pip
from smokehouse.programs.uv import run_uv

RECORDS = Path(__file__).parent / "data" / "index"
# Of a metadata file, what a resolution depends on.
_FIELDS = ("Metadata-Version", "Name", "Version", "Requires-Dist", "Requires-Python", "Provides-Extra")


@contextmanager
def serving(name: str) -> Iterator[dict[str, str]]:
    """Serve the record of the environment `name`; yields the variables that make uv ask it, and nobody else."""
    place = _place(_inputs(name))
    if not place.is_file():
        remedy = f"PYTHONPATH=src python -m tests.recorded_index {name}"
        raise FileNotFoundError(f"{place}: expected a record of the index for {name}, found none; run {remedy}")
    record = json.loads(place.read_text())
    with tempfile.TemporaryDirectory() as folder, mirror.running("", datetime.max.replace(tzinfo=UTC)) as server:
        for package, files in record["pages"].items():
            listed: list[dict[str, Any]] = []
            server.pages[package] = {"meta": {"api-version": "1.1"}, "name": package, "versions": [], "files": listed}
            for file in files:
                path = f"/files/{file['hashes']['sha256']}/{file['filename']}"
                metadata = record["metadata"].get(f"{package}=={_version(file['filename'])}", "")
                server.kept[f"{path}.metadata"] = metadata.encode()
                url = f"http://127.0.0.1:{server.server_port}{path}"
                listed.append(file | {"url": url, "core-metadata": bool(metadata)})
        sdists = [record["metadata"][version] for version in record["sdists"]]
        Path(folder, "uv.toml").write_text("".join(_dependency_metadata(text) for text in sdists))
        known = Path(folder, "cache", "smokehouse", "build-requires")
        known.mkdir(parents=True)
        for digest, requirements in record["build_requires"].items():
            (known / f"{digest}.json").write_text(json.dumps(requirements))
        yield {
            "UV_DEFAULT_INDEX": server.address("fresh"),
            "UV_CACHE_DIR": str(Path(folder, "uv")),
            "UV_CONFIG_FILE": str(Path(folder, "uv.toml")),
            "XDG_CACHE_HOME": str(Path(folder, "cache")),
        }


def resolved(name: str) -> tuple[list[pip.Resolved], list[pip.Resolved]]:
    """Return what uv answers for the environment `name`, and for building its source distributions."""
    inputs = _inputs(name)
    packages = pip.resolve(inputs)
    return packages, pip.resolve_builds(inputs, packages)


def _inputs(name: str) -> Inputs:
    return environments.read(Checkout(Path(__file__).parents[1]), name).inputs


def _place(inputs: Inputs) -> Path:
    """Return where the record of `inputs` lies, which environments with the same packages share."""
    return RECORDS / f"{inputs.cutoff}-{inputs.digest()[:12]}.json"


def _dependency_metadata(text: str) -> str:
    """Return what tells uv the metadata of a source distribution (https://docs.astral.sh/uv/reference/settings/)."""
    headers = HeaderParser().parsestr(text)
    return (
        f"[[dependency-metadata]]\nname = {json.dumps(headers['Name'])}\nversion = {json.dumps(headers['Version'])}\n"
        f"requires-dist = {json.dumps(headers.get_all('Requires-Dist', []))}\n"
        f"provides-extra = {json.dumps(headers.get_all('Provides-Extra', []))}\n"
    )


def _trimmed(text: str) -> str:
    headers = HeaderParser().parsestr(text)
    return "".join(f"{field}: {value}\n" for field in _FIELDS for value in headers.get_all(field, ()))


def _version(filename: str) -> Version | None:
    """Return the version in a file name, None where it is older than the rules for one."""
    try:
        return parse_wheel_filename(filename)[1] if filename.endswith(".whl") else parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def record(name: str, upstream: str) -> dict[str, Any]:
    """Resolve the environment `name` on the real index and return what uv was told."""
    inputs = _inputs(name)
    with tempfile.TemporaryDirectory() as folder, mirror.running(upstream, datetime.now(UTC) + timedelta(days=1)) as server:
        environ = {"UV_DEFAULT_INDEX": server.address("fresh"), "UV_CACHE_DIR": f"{folder}/uv", "XDG_CACHE_HOME": folder}
        with mock.patch.dict(os.environ, environ):
            packages, builds = resolved(name)
            sdists = [package for package in packages if package.sdist]
            built = {f"{package.name}=={package.version}": _built(package, Path(folder)) for package in sdists}
        seen: dict[str, str] = {}
        metadata: dict[str, str] = {}
        looked_at: defaultdict[str, set[Version]] = defaultdict(set)
        for path, data in server.kept.items():
            filename = path.removesuffix(".metadata").rpartition("/")[2]
            if filename.endswith(".whl"):
                seen[filename] = _trimmed((data if path.endswith(".metadata") else _metadata(data)).decode())
        for found in (*packages, *builds):
            looked_at[found.name].add(Version(found.version))
        for package, page in server.pages.items():
            for file in page["files"] if page else ():
                if file["filename"] in seen and (version := _version(file["filename"])):
                    looked_at[package].add(version)
                    metadata[f"{package}=={version}"] = seen[file["filename"]]
        pages = {package: _page(page, looked_at[package], inputs) for package, page in sorted(server.pages.items()) if page}
        build_requires = {
            path.stem: json.loads(path.read_text()) for path in Path(folder, "smokehouse", "build-requires").glob("*.json")
        }
    return {"pages": pages, "metadata": metadata | built, "sdists": [*built], "build_requires": build_requires}


def _page(page: dict[str, Any], versions: set[Version], inputs: Inputs) -> list[dict[str, Any]]:
    """Return the files of `versions` and of the next one after the cut-off, few of each, without addresses."""
    files = sorted(
        ((str(file["filename"]), version, file) for file in page["files"] if (version := _version(file["filename"]))),
        key=lambda entry: entry[0],
    )
    latest = max(versions, default=None)
    younger = [version for _, version, file in files if latest and version > latest and _time(file) >= inputs.before]
    kept = versions | {*sorted(younger)[:1]}
    fields = ("filename", "requires-python", "size", "upload-time", "yanked")
    found, others = [], set()
    for name, version, file in files:
        fits = name.endswith(".gz") or re.search(r"(cp311|abi3|py3|py311)-.*(manylinux.*x86_64|linux_x86_64|none-any)", name)
        if version in kept and (fits or version not in others):
            others |= set() if fits else {version}
            hashes = {"hashes": {"sha256": file["hashes"]["sha256"]}}
            found.append({field: file[field] for field in fields if file.get(field)} | hashes)
    return found


def _time(file: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(file["upload-time"])


def _metadata(wheel: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def _built(package: pip.Resolved, folder: Path) -> str:
    """Return the metadata of a source distribution, which only building it tells."""
    target = folder / "built" / package.name
    pin = f"{package.name}=={package.version}"
    run_uv(["pip", "install", "--no-deps", "--target", str(target), "--python", sys.executable, pin], pin, 900.0, cwd=folder)
    [metadata] = target.glob("*.dist-info/METADATA")
    return _trimmed(metadata.read_text())


def main(names: list[str]) -> None:
    """Record `names`, or all environments."""
    for name in names or Checkout(Path(__file__).parents[1]).environments():
        lines = json.dumps(record(name, mirror.upstream()), indent=0, sort_keys=True)
        _place(_inputs(name)).write_text(lines + "\n")
        print(f"{name}: recorded, {len(lines) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
