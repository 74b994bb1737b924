"""Install Smokehouse's files and loader in the image, and verify that all others are locked.

own_files.py CONTEXT OUT [--earlier EARLIER]: what this program made before, of which the bytecode of files that are the same is
taken, which changes no byte of what it makes.
"""

import argparse
import csv
import importlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import tree
import unpack

_PART = 500  # files that one thread hashes at a time


def main(context: Path, out: Path, earlier: Path | None) -> None:
    """Write /opt/smokehouse and the loader, with files.json: every file that no locked package contains as it is."""
    plan = tree.plan(context)
    _check_owners(context, plan)
    folder = out / tree.SMOKEHOUSE
    shutil.copytree(context / "ours", folder)
    site = Path("/", tree.PREFIX, "lib", f"python{plan['python']}", "site-packages")
    for name in plan["programs"]:
        (folder / name).chmod(0o755)
    own_site = out / site.relative_to("/")
    own_site.parent.mkdir(parents=True)
    shutil.move(folder / "site", own_site)
    loader = context / plan["loader"]["file"]
    tree.check_sha256(loader, plan["loader"]["sha256"])
    unpack.unpack(loader, own_site, plan["python"])
    tree.compile_python(out, [out / "opt"], earlier)
    reasons = _generated(plan, site)
    written = {f"/{path.relative_to(out)}": path for path in out.rglob("*") if path.is_file()}
    reasons |= {path: "pyc" if path.endswith(".pyc") else "ours" for path in written}
    hashes = _hashes([*reasons], written)
    # As json.dumps with indent=0 writes it, which takes ten times as long for thousands of files.
    entry = '{{\n"path": {},\n"sha256": "{}",\n"reason": {}\n}}'
    files = [entry.format(json.dumps(path), hashes[path], json.dumps(reasons[path])) for path in sorted(reasons)]
    (folder / "files.json").write_text('{\n"format": 1,\n"files": [\n' + ",\n".join(files) + "\n]\n}\n")
    tree.normalize(out, plan["epoch"], plan["budget"])


def _hashes(paths: list[str], written: dict[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, in the layers below unless it is `written` here: of all bytecode, thousands of files."""
    parts = [paths[at : at + _PART] for at in range(0, len(paths), _PART)]

    def hash_part(part: list[str]) -> list[tuple[str, str]]:
        return [(path, tree.sha256(written.get(path, Path(path)))) for path in part]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(found for part in threads.map(hash_part, parts) for found in part)


def _check_owners(context: Path, plan: dict[str, Any]) -> None:
    """Refuse packages that own files of each other; the context has the rules, which installations outside of images obey."""
    sys.path.insert(0, str(context))
    owners = importlib.import_module("owners")
    built = {owners.canonical(entry["name"]) for entry in plan["pip"] if entry["file"].endswith((".tar.gz", ".zip"))}
    if problems := owners.problems(Path("/", tree.PREFIX), plan["python"], built):
        tree.refuse(f"{problems[0]}; remove that package from the environment")


def _generated(plan: dict[str, Any], site: Path) -> dict[str, str]:
    """Return the files of the prefix that the build generated, each with the reason; refuse files of unknown origin.

    The reasons are part of the format of files.json.
    """
    prefix = Path("/", tree.PREFIX)
    reasons: dict[str, str] = {}
    packaged: dict[str, str] = {}
    reasons[str(prefix / "conda-meta" / "history")] = "conda record"  # empty; it marks the folder as a prefix for conda
    for record in sorted((prefix / "conda-meta").glob("*.json")):
        reasons[str(record)] = "conda record"
        for entry in json.loads(record.read_text())["paths_data"]["paths"]:
            path = str(prefix / entry["_path"])
            packaged[path] = ""
            if "prefix_placeholder" in entry:
                reasons[path] = "prefix in place of a placeholder"
            elif entry["path_type"] not in ("hardlink", "softlink", "directory"):
                reasons[path] = "script of a conda package"
    versions: dict[str, str] = {}
    for info in sorted(site.glob("*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        versions[_normalized(name)] = version
        _add_distribution(info, packaged, reasons)
    locked = {_normalized(entry["name"]): entry for entry in plan["pip"]}
    _check_versions(versions, {name: entry["version"] for name, entry in locked.items()})
    for name, entry in locked.items():
        if entry["file"].endswith((".tar.gz", ".zip")):
            for path in _record(next(site.glob(f"{name.replace('-', '_')}-*.dist-info"))):
                reasons.setdefault(path, f"built from {entry['file']}")
    regular = set()
    for path, is_regular in sorted(_files(str(prefix))):
        if path.rpartition("/")[0].endswith("/__pycache__"):
            reasons[path] = "pyc"
        elif path not in packaged and path not in reasons:
            tree.refuse(f"{path}: unexpected file, of no locked package; remove what writes it")
        if is_regular:
            regular.add(path)
    return {path: reason for path, reason in reasons.items() if path in regular}


def _files(folder: str) -> list[tuple[str, bool]]:
    """Return all that is below a folder but folders, and whether it is a regular file; links are not followed."""
    found, folders = [], [folder]
    for each in folders:  # which grows
        with os.scandir(each) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    found.append((entry.path, entry.is_file(follow_symlinks=False)))
    return found


def _check_versions(found: dict[str, str], locked: dict[str, str]) -> None:
    """Refuse installed distributions, by name, that are not exactly the locked ones."""
    if unlocked := sorted(found.keys() - locked.keys()):
        tree.refuse(f"site-packages: expected locked packages, found {', '.join(unlocked)}; remove the wheel that adds them")
    if missing := sorted(locked.keys() - found.keys()):
        tree.refuse(f"site-packages: expected {', '.join(missing)}, not found; remove the wheel that replaces them")
    for name, version in locked.items():
        if found[name] != version:
            tree.refuse(f"{name}: expected {version} as locked, found {found[name]}; remove the wheel that replaces it")


def _add_distribution(info: Path, packaged: dict[str, str], reasons: dict[str, str]) -> None:
    """Add the files of an installed distribution; refuse one whose content differs from another package's."""
    scripts = set()
    entry_points = info / "entry_points.txt"
    if entry_points.is_file():
        scripts = {line.partition("=")[0].strip() for line in entry_points.read_text("utf-8").splitlines() if "=" in line}
    for path, digest in _record(info).items():
        folder, _, name = path.rpartition("/")
        if packaged.setdefault(path, digest) != digest:
            tree.refuse(f"{path}: expected the same file in {info.name} and another package, found two; remove one of them")
        if folder == str(info) and name in ("RECORD", "INSTALLER"):
            reasons[path] = "record of the installation"
        elif folder == f"/{tree.PREFIX}/bin":
            reasons[path] = "console script" if name in scripts else "script of a wheel"


def _record(info: Path) -> dict[str, str]:
    """Return the absolute paths of a distribution's files, with the hashes that its RECORD has."""
    rows = csv.reader((info / "RECORD").read_text("utf-8").splitlines())
    site = info.parent
    return {os.path.normpath(f"{site}/{row[0]}"): row[1] for row in rows if row}  # follows no links


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("context", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--earlier", type=Path)
    arguments = parser.parse_args()
    main(arguments.context, arguments.out, arguments.earlier)
