"""Add the files of Smokehouse to the image, and verify that all others are of the lock: own_files.py IN OUT."""

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tree


def main(given: Path, out: Path) -> None:
    """Write /opt/smokehouse, with a list of every file that no artefact of the lock contains unchanged."""
    plan = tree.plan(given)
    ours = out / tree.OURS
    shutil.copytree(given / "ours", ours)
    site = Path("/", tree.PREFIX, "lib", f"python{plan['python']}", "site-packages")
    hook = out / site.relative_to("/") / "_smokehouse_home.py"
    hook.parent.mkdir(parents=True)
    shutil.move(ours / "home.py", hook)
    hook.with_suffix(".pth").write_text("import _smokehouse_home\n")
    for name in plan["programs"]:
        (ours / name).chmod(0o755)
    tree.compile_python(out, [out / "opt"])
    made = _generated(plan, site)
    for path in sorted(out.rglob("*")):
        if path.is_file():
            made[f"/{path.relative_to(out)}"] = "pyc" if path.suffix == ".pyc" else "ours"
    text = [
        {"path": path, "sha256": _sha256(out / path[1:] if (out / path[1:]).exists() else Path(path)), "reason": made[path]}
        for path in sorted(made)
    ]
    (ours / "files.json").write_text(json.dumps({"format": 1, "files": text}, indent=0) + "\n")
    tree.settle(out, plan["epoch"], plan["budget"])


def _generated(plan: dict[str, object], site: Path) -> dict[str, str]:
    """Return path -> reason of every file that this build generated in the prefix; refuse files of unknown origin."""
    prefix = Path("/", tree.PREFIX)
    made: dict[str, str] = {}
    owned: dict[str, str] = {}
    made[str(prefix / "conda-meta" / "history")] = "conda record"  # empty; conda recognizes a prefix by it
    for record in sorted((prefix / "conda-meta").glob("*.json")):
        made[str(record)] = "conda record"
        for entry in json.loads(record.read_text())["paths_data"]["paths"]:
            path = str(prefix / entry["_path"])
            owned[path] = ""
            if "prefix_placeholder" in entry:
                made[path] = "prefix in place of a placeholder"
            elif entry["path_type"] not in ("hardlink", "softlink", "directory"):
                made[path] = "script of a conda package"
    found: dict[str, str] = {}
    for info in sorted(site.glob("*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found[_normal(name)] = version
        _own(info, owned, made)
    wanted = {_normal(entry["name"]): entry for entry in plan["pip"]}  # type: ignore[attr-defined]
    if different := sorted(found.keys() ^ wanted.keys()):
        tree.refuse(f"{', '.join(different)}: not what the lock names; another wheel brought or replaced it")
    for name, entry in wanted.items():
        if found[name] != entry["version"]:
            tree.refuse(f"{name} {found[name]}: the lock names {entry['version']}; another wheel replaced it")
        if entry["file"].endswith((".tar.gz", ".zip")):
            for path in _rows(next(site.glob(f"{name.replace('-', '_')}-*.dist-info"))):
                made.setdefault(path, f"built from {entry['file']}")
    for file in sorted(prefix.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        if file.parent.name == "__pycache__":
            made[str(file)] = "pyc"
        elif str(file) not in owned and str(file) not in made:
            tree.refuse(f"{file}: of no artefact of the lock")
    return {path: reason for path, reason in made.items() if not Path(path).is_symlink() and Path(path).is_file()}


def _own(info: Path, owned: dict[str, str], made: dict[str, str]) -> None:
    """Add the files of a distribution to `owned`, generated ones also to `made`; refuse files that packages disagree on."""
    scripts = set()
    entry_points = info / "entry_points.txt"
    if entry_points.is_file():
        scripts = {line.partition("=")[0].strip() for line in entry_points.read_text("utf-8").splitlines() if "=" in line}
    for path, digest in _rows(info).items():
        place = Path(path)
        if owned.setdefault(path, digest) != digest:
            tree.refuse(f"{path}: {info.name} and another artefact of the lock differ about it")
        if place.parent == info and place.name in ("RECORD", "INSTALLER"):
            made[path] = "record of the installation"
        elif place.parent == Path("/", tree.PREFIX, "bin"):
            made[path] = "console script" if place.name in scripts else "script of a wheel"


def _rows(info: Path) -> dict[str, str]:
    """Return path -> hash of the files of a distribution, from its RECORD."""
    rows = csv.reader((info / "RECORD").read_text("utf-8").splitlines())
    return {str(Path("/", *_within(info.parent, row[0]))): row[1] for row in rows if row}


def _within(site: Path, path: str) -> tuple[str, ...]:
    parts = list(site.parts)
    for part in Path(path).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return tuple(parts)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
