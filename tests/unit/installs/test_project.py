"""A training repository of the user's own beside a lock: checked before anything is installed, recorded, and repaired."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from virtualenv.seed.wheels.embed import get_embed_wheel

from ..conftest import Index, TestCheckout, wheel
from .test_prefix import run

# A build backend that needs nothing, in the project itself; setuptools' own are tested with the wheel that virtualenv brings.
BACKEND = """\
import os, pathlib, zipfile
METADATA = pathlib.Path("METADATA").read_text()
NAME = next(line[6:] for line in METADATA.splitlines() if line.startswith("Name: "))
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = f"{NAME}-0.1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as archive:
        archive.writestr(f"{NAME}.pth", os.getcwd())
        archive.writestr(f"{NAME}-0.1.dist-info/METADATA", METADATA)
        archive.writestr(f"{NAME}-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{NAME}-0.1.dist-info/RECORD", "")
    return name
build_editable = build_wheel
"""


def make(folder: Path, *requires: str, python: str = ">=3.11", extras: tuple[str, ...] = ()) -> Path:
    """Make a project `mine` with a module, whose metadata only its build backend knows."""
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: mine", "Version: 0.1", f"Requires-Python: {python}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {text}" for text in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (folder / "mine.py").write_text("import alpha, delta\nprint(alpha.hello(), delta.__name__)\n")
    return folder


@pytest.fixture
def locked(checkout: TestCheckout, index: Index) -> TestCheckout:
    """A locked checkout, and later packages in the index: delta needs gamma, gamma has a new release."""
    checkout.lock()
    index.add("delta", "1.0", requires=("gamma>=1",))
    index.add("delta", "2.0", requires=("gamma>=2",))
    index.add("gamma", "2.0")
    index.add("epsilon", "1.0")
    return checkout


def marker(prefix: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((prefix / ".smokehouse.json").read_text())
    return found


@pytest.mark.parametrize("only", [[], ["--only", "pip"]])
def test_a_project_joins_and_the_locked_versions_stay(
    locked: TestCheckout, index: Index, tmp_path: Path, only: list[str]
) -> None:
    mine, prefix = make(tmp_path / "my repo", "alpha", "delta", 'epsilon; extra == "eval"', extras=("eval",)), tmp_path / "p"
    subprocess.run(["git", "init", "-q", str(mine)], check=True)
    commit = ["git", "-C", str(mine), "-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", "one"]
    subprocess.run(["git", "-C", str(mine), "add", "-A"], check=True)
    subprocess.run(commit, check=True)
    head = subprocess.run(
        ["git", "-C", str(mine), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    command = ["install", "tiny", str(prefix), *only, "--with-project", f"{mine}[eval]"]
    ended = locked.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert "added mine 0.1 and 2 packages for it" in ended.stderr
    assert run(prefix / "bin" / "python", "-c", "import mine") == "hello delta\n"
    project = marker(prefix)["project"]
    assert (project["path"], project["name"], project["extras"]) == (str(mine), "mine", ["eval"])
    assert (project["commit"], project["modified"]) == (head, False)
    assert [(file["name"], file["version"], len(file["sha256"])) for file in project["added"]] == [
        ("delta", "1.0", 64),  # 2.0 needs another gamma than the lock has
        ("epsilon", "1.0", 64),
    ]
    checked = locked.run("install", "tiny", str(prefix), "--check")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout
    # Versions are fixed at once: a later release is not taken by a second call, which changes nothing.
    index.add("delta", "1.1", requires=("gamma>=1",))
    inode = (prefix / ".smokehouse.json").stat().st_mtime_ns
    assert locked.run(*command).returncode == 0
    assert (prefix / ".smokehouse.json").stat().st_mtime_ns == inode
    # Without the project it goes, and so does what it brought.
    assert locked.run("install", "tiny", str(prefix), *only).returncode == 0
    assert "project" not in marker(prefix)
    assert not list(prefix.glob("lib/*/site-packages/delta*")) + list(prefix.glob("lib/*/site-packages/mine*"))


def test_a_setup_py_without_pyproject_toml(locked: TestCheckout, index: Index, tmp_path: Path) -> None:
    setuptools = get_embed_wheel("setuptools", "3.11").path
    index.put(setuptools.name, setuptools.read_bytes())
    mine = tmp_path / "src" / "open-r1"
    mine.mkdir(parents=True)
    (mine / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='open-r1', version='0.1', py_modules=['r1'], install_requires=['delta'],\n"
        "      extras_require={'dev': ['beta==3.0']})\n"
    )
    (mine / "r1.py").write_text("import delta; print(delta.__name__)")
    ended = locked.run("install", "tiny", str(tmp_path / "p"), "--with-project", str(mine), "--only", "pip")
    assert ended.returncode == 0, ended.stderr
    assert run(tmp_path / "p" / "bin" / "python", "-c", "import r1") == "delta\n"
    assert marker(tmp_path / "p")["project"]["commit"] == ""
    said = locked.refused("install", "tiny", str(tmp_path / "p"), "--with-project", str(mine), "--extra", "dev")
    assert said.startswith(f"smokehouse: {mine}: requires beta==3.0, lock has 2.0; widen its requirements, or copy ")


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        (
            ("beta==3.0", "alpha>=2"),
            "requires beta==3.0, lock has 2.0; alpha>=2, lock has 1.0; widen its requirements, or copy",
        ),
        (("gamma @ git+https://example.org/gamma",), "requires gamma @ git+https://example.org/gamma, of which the lock can"),
        (("delta>=2",), "cannot be resolved: "),
        (("no-such-package",), "cannot be resolved: "),
        (("beta=>2",), "its metadata cannot be read: "),
    ],
)
def test_a_conflict_is_refused_before_anything_is_installed(
    locked: TestCheckout, index: Index, tmp_path: Path, requires: tuple[str, ...], message: str
) -> None:
    mine = make(tmp_path / "mine", *requires)
    said = locked.refused("install", "tiny", str(tmp_path / "p"), "--with-project", str(mine))
    assert said.startswith(f"smokehouse: {mine}")
    assert message in said
    assert not (tmp_path / "p").exists()
    assert not any(name.startswith(("beta", "alpha")) for name in index.downloads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with-project", "{mine}[nope]"], "{mine}: extra nope not found; its extras are: eval"),
        (["--with-project", "{mine}[no pe]"], "--with-project {mine}: invalid extra 'no pe'; write DIR[EXTRA,...]"),
        (["--with-project", "{mine}/none"], "--with-project {mine}/none: folder not found; specify a repository"),
        (["--with-project", "{mine}/.."], "--with-project {mine}/..: pyproject.toml or setup.py not found"),
        (["--extra", "eval"], "--extra: expected --with-project, whose extras it names"),
        (["--with-project", "{mine}", "--bundle", "b"], "--with-project: expected an index, found --bundle"),
        (["--python", "3.11"], "--python: expected --only pip"),
        (["--only", "pip", "--devel"], "--only pip: expected no --devel, which is about conda packages"),
        (["--check", "--devel"], "--check: expected no other options"),
    ],
)
def test_options_that_do_not_fit(locked: TestCheckout, tmp_path: Path, arguments: list[str], message: str) -> None:
    mine = make(tmp_path / "mine", 'epsilon; extra == "eval"', extras=("eval",))
    given = [argument.format(mine=mine) for argument in arguments]
    assert locked.refused("install", "tiny", str(tmp_path / "p"), *given).startswith(f"smokehouse: {message.format(mine=mine)}")
    assert not (tmp_path / "p").exists()


def test_a_project_for_another_python_or_in_the_place_of_a_locked_package(locked: TestCheckout, tmp_path: Path) -> None:
    other = make(tmp_path / "other", python=">=3.11,<3.11.1")
    command = ("install", "tiny", str(tmp_path / "p"), "--with-project")
    assert f"smokehouse: {other}: " in locked.refused(*command, str(other))
    twin = make(tmp_path / "twin")
    for file in (twin / "METADATA", twin / "backend.py"):
        file.write_text(file.read_text().replace("Name: mine", "Name: beta"))
    assert f"{twin}: beta 2.0 is locked, so the project would replace it" in locked.refused(*command, str(twin))


def test_an_existing_prefix_takes_a_project_without_a_new_installation(
    locked: TestCheckout, index: Index, tmp_path: Path
) -> None:
    prefix = tmp_path / "p"
    assert locked.run("install", "tiny", str(prefix)).returncode == 0
    [alpha] = prefix.glob("lib/*/site-packages/alpha.py")
    inode, downloads = alpha.stat().st_ino, index.downloads["alpha-1.0-py3-none-any.whl"]
    mine = make(tmp_path / "mine", "delta")
    ended = locked.run("install", "tiny", str(prefix), "--with-project", str(mine), SMOKEHOUSE_CHANNEL="http://127.0.0.1:9")
    assert ended.returncode == 0, ended.stderr
    assert alpha.stat().st_ino == inode
    assert index.downloads["alpha-1.0-py3-none-any.whl"] == downloads
    assert run(prefix / "bin" / "python", "-c", "import mine") == "hello delta\n"


def test_an_extra_wheel_is_installed_and_recorded(locked: TestCheckout, tmp_path: Path) -> None:
    data = wheel("zeta", "1.0", requires=("alpha",))
    file = tmp_path / "zeta-1.0-py3-none-any.whl"
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    prefix = tmp_path / "p"
    command = ["install", "tiny", str(prefix), "--only", "pip", "--python", sys.executable]
    ended = locked.run(*command, "--with", f"{file}#sha256={digest}")
    assert ended.returncode == 0, ended.stderr
    assert run(prefix / "bin" / "python", "-c", "import zeta; print(zeta.__name__)") == "zeta\n"
    assert [(one["name"], one["sha256"]) for one in marker(prefix)["with"]] == [("zeta", digest)]
    assert locked.run("install", "tiny", str(prefix), "--check").returncode == 0
    said = locked.refused(*command, "--with", f"{file}#sha256={'0' * 64}")
    assert "SHA-256 mismatch" in said
