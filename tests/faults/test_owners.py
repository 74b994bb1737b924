"""A package that is locked, or added by hash, cannot take the place of another: neither in an installation nor in an image."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ..unit.conftest import Index, TestCheckout, sdist, wheel
from ..unit.docker.test_steps import SITE, plan
from ..unit.docker.test_steps import run as step

STATIC = "Metadata-Version: 2.2\nName: {name}\nVersion: 1.0\n"  # PEP 643: uv does not build it to resolve
OWN_BACKEND = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
# Makes a wheel with members of any name, which its RECORD lists.
BACKEND = """
import os, zipfile
MEMBERS = {members!r}
INFO = {{"METADATA": "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\n", "WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\n"
        "Root-Is-Purelib: true\\nTag: py3-none-any\\n"}}
def build_wheel(folder, *_):
    with zipfile.ZipFile(os.path.join(folder, "evil-1.0-py3-none-any.whl"), "w") as archive:
        names = {{name: "evil" for name in MEMBERS}} | {{f"evil-1.0.dist-info/{{name}}": text for name, text in INFO.items()}}
        for name, text in names.items():
            archive.writestr(name, text)
        archive.writestr("evil-1.0.dist-info/RECORD", "".join(f"{{name}},,\\n" for name in names))
    return "evil-1.0-py3-none-any.whl"
"""
# What a package built from source must not have, and the path in an environment.
BUILT = {
    "evil-1.0.data/scripts/nvidia-smi": "bin/nvidia-smi",
    "evil-1.0.data/data/etc/profile.d/evil.sh": "etc/profile.d/evil.sh",
    "evil-1.0.data/data/lib/libcuda.so.1": "lib/libcuda.so.1",
    "evil.pth": "lib/python3.11/site-packages/evil.pth",
    "sitecustomize.py": "lib/python3.11/site-packages/sitecustomize.py",
}


def evil(*members: str, record: bool = True, name: str = "evil") -> bytes:
    """A wheel with further members, which its RECORD lists or not."""
    buffer = io.BytesIO(wheel(name, "1.0"))
    with zipfile.ZipFile(buffer) as archive:
        found = {member: archive.read(member) for member in archive.namelist()}
    found |= dict.fromkeys(members, b"evil")
    if record:
        found[f"{name}-1.0.dist-info/RECORD"] += "".join(f"{member},,\n" for member in members).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, data in found.items():
            archive.writestr(member, data)
    return out.getvalue()


def install(checkout: TestCheckout, folder: Path, *options: str) -> str:
    """Install the PyPI packages of tiny, which must fail and leave nothing that looks complete; return the error."""
    ended = checkout.run("install", "tiny", str(folder), "--only", "pip", *options)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert checkout.run("run", "--prefix", str(folder), "tiny", "--", "python", "-c", "0").returncode != 0
    return ended.stderr.splitlines()[-1]


def test_what_is_built_when_it_is_installed_keeps_to_its_own(
    checkout: TestCheckout, index: Index, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a source distribution that owns any path")
    files = {"pyproject.toml": OWN_BACKEND, "own.py": BACKEND.format(members=["evil.py", *BUILT]), "PKG-INFO": STATIC}
    index.put("evil-1.0.tar.gz", sdist("evil", "1.0", files | {"PKG-INFO": STATIC.format(name="evil")}))
    checkout.edit(checkout.environment, "      - beta\n", "      - beta\n      - evil\n")
    checkout.lock()
    said = install(checkout, tmp_path / "env")
    assert ": built from source by evil, expected its own modules and scripts alone" in said
    assert said.endswith(f"and {len(BUILT) - 3} more; remove that package from the environment")


def test_no_locked_wheel_replaces_a_file_of_another(
    checkout: TestCheckout, index: Index, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "two locked packages own one path")
    index.put("evil-1.0-py3-none-any.whl", evil("alpha.py"))
    checkout.edit(checkout.environment, "      - beta\n", "      - beta\n      - evil\n")
    checkout.lock()
    said = install(checkout, tmp_path / "env")
    assert "alpha.py: expected one owner, found different files of alpha-1.0.dist-info and evil-1.0.dist-info" in said


ADDED = [
    ("alpha-1.0.dist-info/RECORD", True, "expected files of its own, found 'alpha-1.0.dist-info/RECORD'"),
    ("evil-1.0.data/purelib/alpha-1.0.dist-info/RECORD", True, "expected files of its own, found 'evil-1.0.data/purelib/alpha"),
    ("evil-1.0.data/data/bin/python", True, "expected files of its own, found 'evil-1.0.data/data/bin/python'"),
    ("evil-1.0.data/data/lib/python3.11/os.py", True, "expected files of its own, found"),
    ("../../evil.py", True, "expected files of its own, found '../../evil.py'"),
    ("/etc/evil", True, "expected files of its own, found '/etc/evil'"),
    ("alpha.py", False, "expected each file listed once in its RECORD, found 'alpha.py'"),
]


@pytest.mark.parametrize(("member", "record", "said"), ADDED)
def test_no_added_wheel_has_files_of_others(
    checkout: TestCheckout, tmp_path: Path, member: str, record: bool, said: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a wheel of --with in the place of another")
    checkout.lock()
    file = tmp_path / "evil-1.0-py3-none-any.whl"
    file.write_bytes(evil(member, record=record))
    option = f"{file}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
    several = "invalid wheel (too many values to unpack" if member.startswith("alpha-1.0.dist-info") else said
    assert f"--with {file.name}: {several}" in checkout.refused("install", "tiny", str(tmp_path / "env"), "--with", option)


@pytest.mark.skipif(os.getuid() != 0, reason="requires root, because steps change the owner of their files to root")
@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("alpha-1.0.dist-info/RECORD", "expected metadata of one package, found alpha-1.0.dist-info and evil-1.0.dist-info"),
        ("evil-1.0.data/purelib/alpha-1.0.dist-info/RECORD", "expected files of its own, found lib/python"),
        ("evil-1.0.data/data/lib/python3.11/__pycache__/os.cpython-311.pyc", "expected files of its own, found lib/python"),
        ("evil-1.0.data/unknown/x", "expected its own files, found 'evil-1.0.data/unknown/x'"),
        ("evil-1.0.data/scripts/", ""),
    ],
)
def test_no_wheel_in_an_image_has_files_of_others(
    root: Path, tmp_path: Path, member: str, said: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a wheel of an image in the place of another")
    plan(tmp_path / "in", {"evil-1.0-py3-none-any.whl": evil(member)})
    ended = step(root, "unpack", tmp_path / "in", tmp_path / "out")
    assert "Traceback" not in ended.stderr
    assert (ended.returncode, said in ended.stderr) == (1 if said else 0, True)


@pytest.mark.skipif(os.getuid() != 0, reason="requires root, because steps change the owner of their files to root")
@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "a b", "-x"])
def test_no_console_script_has_another_name(
    root: Path, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a console script with a path")
    data = wheel("alpha", "1.0", script="alpha:x")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {member: archive.read(member) for member in archive.namelist()}
    found["alpha-1.0.dist-info/entry_points.txt"] = f"[console_scripts]\n{name} = alpha:x\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, content in found.items():
            archive.writestr(member, content)
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": out.getvalue()})
    ended = step(root, "unpack", tmp_path / "in", tmp_path / "out")
    assert ended.returncode == 1
    assert not (tmp_path / "out" / SITE / "alpha-1.0.dist-info" / "RECORD").exists()
    assert "smokehouse: alpha-1.0-py3-none-any.whl: expected console scripts NAME = MODULE:FUNCTION" in ended.stderr
