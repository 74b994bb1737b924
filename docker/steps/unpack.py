"""Unpack the wheels of a layer: unpack.py CONTEXT OUT [--built BUILT] [--earlier EARLIER].

BUILT has wheels from source distributions. EARLIER is what this program made of other wheels, with the same interpreter; the
bytecode of files that are the same is taken from there, which changes no byte of what it makes.
"""

import argparse
import base64
import configparser
import csv
import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tree

_INSTALLER = b"smokehouse\n"
_SCRIPT = """\
#!/{prefix}/bin/python{python}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


def main(context: Path, out: Path, built: Path | None, earlier: Path | None) -> None:
    """Verify, unpack and compile every wheel of the plan, then those in `built`."""
    plan = tree.plan(context)
    site = out / tree.PREFIX / "lib" / f"python{plan['python']}" / "site-packages"
    site.mkdir(parents=True)
    for file in plan["files"]:
        tree.check_sha256(context / file["file"], file["sha256"])
        unpack(context / file["file"], site, plan["python"])
    for wheel in sorted(built.glob("*.whl")) if built else ():
        unpack(wheel, site, plan["python"])
    tree.compile_python(out, [site], earlier)
    tree.normalize(out, plan["epoch"], plan["budget"])


def unpack(wheel: Path, site: Path, python: str) -> None:
    """Install a wheel for Python `python` in the folder `site` of a prefix; refuse one that would write outside the prefix.

    See: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    prefix = site.parents[2]
    rows: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        infos = {name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")}
        if len(infos) != 1:
            found = " and ".join(sorted(infos)) or "none"
            tree.refuse(f"{wheel.name}: expected metadata of one package, found {found}; do not trust this wheel")
        [info] = infos
        data = f"{info.removesuffix('.dist-info')}.data/"
        places = {
            "purelib": site,
            "platlib": site,
            "scripts": prefix / "bin",
            "headers": prefix / "include" / f"python{python}" / info.split("-")[0],
            "data": prefix,
        }
        for member in archive.infolist():
            if member.is_dir() or member.filename == f"{info}/RECORD":
                continue
            # With a second slash, what follows the name of a place would be an absolute path.
            if ".." in member.filename.split("/") or "//" in f"/{member.filename}":
                tree.refuse(f"{wheel.name}: expected paths inside it, found {member.filename!r}; do not trust this wheel")
            content = archive.read(member)
            runs = bool(member.external_attr >> 16 & 0o111)
            target = site / member.filename
            if member.filename.startswith(data):
                kind, _, rest = member.filename.removeprefix(data).partition("/")
                if kind not in places or not rest:
                    tree.refuse(f"{wheel.name}: expected its own files, found {member.filename!r}; do not trust this wheel")
                target = places[kind] / rest
                if kind == "scripts":
                    runs = True
                    if content.startswith(b"#!python"):
                        content = f"#!/{tree.PREFIX}/bin/python{python}".encode() + content[content.index(b"\n") :]
            _refuse_foreign(target, site, info, wheel)
            rows.append(_write(target, content, runs, site, wheel))
        if f"{info}/entry_points.txt" in names:
            for name, text in console_scripts(archive.read(f"{info}/entry_points.txt").decode(errors="replace"), python, wheel):
                rows.append(_write(prefix / "bin" / name, text.encode(), True, site, wheel))
        rows.append(_write(site / info / "INSTALLER", _INSTALLER, False, site, wheel))
    record = io.StringIO()
    csv.writer(record, lineterminator="\n").writerows([*sorted(rows), (f"{info}/RECORD", "", "")])
    _write(site / info / "RECORD", record.getvalue().encode(), False, site, wheel)


def _refuse_foreign(target: Path, site: Path, info: str, wheel: Path) -> None:
    """Refuse a file in the metadata of another package, or bytecode outside of site-packages, which is not compiled again."""
    within = _below(site, target).split("/")
    foreign = len(within) > 1 and within[0].endswith(".dist-info") and within[0] != info
    if foreign or (within == [""] and "__pycache__" in target.parts):
        path = target.relative_to(site.parents[2])
        tree.refuse(f"{wheel.name}: expected files of its own, found {path}; do not trust this wheel")


def _below(site: Path, target: Path) -> str:
    """Return the path of a file in `site` relative to it, empty for any other; Path.relative_to takes ten times as long."""
    folder, path = f"{site}/", str(target)
    return path.removeprefix(folder) if path.startswith(folder) else ""


def _write(target: Path, content: bytes, runs: bool, site: Path, wheel: Path) -> tuple[str, str, str]:
    """Write a file and return its row of RECORD; refuse to replace a file that differs."""
    prefix = site.parents[2]
    if target.exists():
        if target.read_bytes() != content:
            tree.refuse(
                f"{wheel.name}: {target.relative_to(prefix)} differs from the same file of another package; "
                f"remove one of them from the environment"
            )
    else:
        tree.write(str(target), content)
        if runs:
            target.chmod(0o755)
    shown = _below(site, target) or f"../../../{target.relative_to(prefix)}"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return shown, f"sha256={digest}", str(len(content))


def console_scripts(text: str, python: str, wheel: Path) -> list[tuple[str, str]]:
    """Return name and content of each console script in `text`, which is an entry_points.txt."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error:
        tree.refuse(
            f"{wheel.name}: expected console scripts NAME = MODULE:FUNCTION, found invalid entry points; do not trust it"
        )
    found = []
    for name, entry in parser.items("console_scripts") if parser.has_section("console_scripts") else ():
        module, _, attribute = entry.split("[")[0].strip().partition(":")
        words = [*module.split("."), *attribute.split(".")]
        if not re.fullmatch(r"\w[\w.+-]*", name) or not all(word.isidentifier() for word in words):
            tree.refuse(
                f"{wheel.name}: expected console scripts NAME = MODULE:FUNCTION, found {f'{name} = {entry}'!r}; "
                f"choose another version of the package"
            )
        first = attribute.split(".")[0]
        script = _SCRIPT.format(prefix=tree.PREFIX, python=python, module=module, first=first, attribute=attribute)
        found.append((name, script))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("context", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--built", type=Path)
    parser.add_argument("--earlier", type=Path)
    arguments = parser.parse_args()
    main(arguments.context, arguments.out, arguments.built, arguments.earlier)
