"""smokehouse-loader: a distribution of its own, the same bytes from the same sources, in every installed environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.installs import loader
from smokehouse.locks import model
from smokehouse.programs import uv

from ..channel import Channel
from ..conftest import Index, TestCheckout
from .test_bundle import without_network

PROJECT = Path("packages", "smokehouse-loader")
# What a user does after README's line; a lock of `tiny` has no torch, without which these still work.
USE = """\
set -e
. "$1/bin/activate"
python -c "
import importlib.metadata, json, smokehouse_loader
record = importlib.metadata.distribution('smokehouse-loader').read_text('direct_url.json')
print(json.dumps([importlib.metadata.version('smokehouse-loader'), smokehouse_loader.__file__, record]))
"
smokehouse-loader failures > /dev/null && python -m smokehouse_loader failures > /dev/null
"""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture
def sources(root: Path, checkout: TestCheckout) -> Path:
    """A project of the loader in `checkout`, which is used in place of this one, with a link as in this one."""
    shutil.copytree(root / "src" / "smokehouse_loader", checkout.root / "src" / "smokehouse_loader")
    shutil.copytree(root / PROJECT, checkout.root / PROJECT, symlinks=True)
    return checkout.root / "src" / "smokehouse_loader"


def use(folder: Path) -> None:
    """Use the loader of the environment in `folder` as README says."""
    environ = {"PATH": os.environ["PATH"]}
    ended = subprocess.run(["sh", "-c", USE, "sh", str(folder)], env=environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    version, file, record = json.loads(ended.stdout)
    assert (version, record) == ("0.1.0", None)
    assert Path(file).is_relative_to(folder)
    assert list(Path(file).parent.glob("__pycache__/*.pyc"))


def installed(folder: Path) -> Path:
    """Return a file of the loader in the environment in `folder`."""
    return next(folder.glob("lib/python3*/site-packages/smokehouse_loader/fit.py"))


def test_same_sources_give_the_same_wheel(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever surrounds them: times and modes of files, variables, and a .gitignore above."""
    copy = tmp_path / "ignored" / "project"
    shutil.copytree(root / PROJECT, copy)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*\n")
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o755)
    (copy / "smokehouse_loader" / ".fit.py.swp").write_text("unsaved")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one = loader.build(Checkout(root), tmp_path / "one")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    other = loader.build(Checkout(copied(copy)), tmp_path / "other")
    assert one == other
    assert one.file == "smokehouse_loader-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / "one" / one.file) as archive:
        assert {(info.compress_type, info.date_time) for info in archive.infolist()} == {
            (zipfile.ZIP_STORED, (2020, 2, 2, 0, 0, 0))
        }
        packed = {name for name in archive.namelist() if ".dist-info" not in name}
        assert archive.testzip() is None
    sources = (root / "src" / "smokehouse_loader").rglob("*")
    assert packed == {
        str(path.relative_to(root / "src")) for path in sources if path.is_file() and path.parent.name != "__pycache__"
    }


def copied(project: Path) -> Path:
    """Move `project` to where a checkout has it, and return the root of that checkout."""
    target = project.with_name("root") / PROJECT
    target.parent.mkdir(parents=True)
    project.rename(target)
    return project.with_name("root")


def test_source_distribution_builds_the_same_wheel(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=root / PROJECT, check=True, capture_output=True, timeout=60)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if not member.isfile()]
        archive.extractall(tmp_path / "unpacked", filter="data")
    [folder] = (tmp_path / "unpacked").iterdir()
    for name in ("wheel", "ours"):
        (tmp_path / name).mkdir()
    assert loader.build(Checkout(copied(folder)), tmp_path / "wheel") == loader.build(Checkout(root), tmp_path / "ours")


def test_metadata_is_what_is_tested(root: Path, tmp_path: Path) -> None:
    """It requires no more than torch, transformers and safetensors, in no version that is older than the tested ones."""
    project = tomllib.loads((root / PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (root / PROJECT / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()
    required = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert required.keys() == {"safetensors", "torch", "transformers"}
    oldest: dict[str, Version] = {}
    for lock in (*(root / "lockfiles").glob("*/lock.json"), *(root / "tests" / "loader" / "lockfiles").glob("*/lock.json")):
        for file in model.read(lock, lock.name, "").pip:
            if file.name in required:
                version = Version(file.version)
                oldest[file.name] = min(oldest.get(file.name, version), version)
    for name, specifier in required.items():
        [bound] = specifier
        assert (bound.operator, Version(bound.version)) == (">=", Version(f"{oldest[name]}")), name


def test_every_python_that_it_supports_can_read_it(root: Path, tmp_path: Path) -> None:
    """In each one that uv finds here, this Python among them; of the oldest, mypy checks the types in `nox -s lint`."""
    project = tomllib.loads((root / PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    found = [python for python in map(uv.find_python, PYTHONS) if python]
    assert found
    code = (
        "import compileall, pathlib, sys, smokehouse_loader.checkpoint, smokehouse_loader.diagnosis as diagnosis\n"
        "assert diagnosis.explain(RuntimeError('x')) == ()\n"
        "sys.exit(not compileall.compile_dir(pathlib.Path(diagnosis.__file__).parent, quiet=1))\n"
    )
    for python in found:
        environ = {"PYTHONPATH": str(root / PROJECT), "PYTHONPYCACHEPREFIX": str(tmp_path), "PATH": os.environ["PATH"]}
        ended = subprocess.run(
            [str(python), "-W", "error", "-c", code], env=environ, capture_output=True, text=True, timeout=60
        )
        assert (ended.returncode, ended.stderr) == (0, ""), python


def test_smoke_installs_it(checkout: TestCheckout) -> None:
    checkout.lock()
    ended = checkout.run("smoke", "tiny")
    assert "smokehouse: installing smokehouse-loader 0.1.0\n" in ended.stderr
    use(checkout.installed)
    ended = checkout.run("run", "tiny", "--", "python", "-m", "smokehouse_loader", "failures")
    assert ended.stdout.startswith("# Known failures\n"), ended.stderr


def test_changed_sources_are_installed_and_nothing_else(checkout: TestCheckout, sources: Path) -> None:
    checkout.lock()
    checkout.run("smoke", "tiny")
    marked, other = checkout.marker.stat().st_mtime_ns, next(checkout.installed.glob("lib/*/site-packages/alpha.py"))
    before = other.stat().st_ino
    assert checkout.run("smoke", "tiny").stderr == ""
    (sources / ".fit.py.swp").write_text("unsaved")
    assert checkout.run("smoke", "tiny").stderr == ""
    (sources / "fit.py").write_text((sources / "fit.py").read_text() + "# changed\n")
    older = (
        f"smokehouse: {checkout.installed}: installed from an older smokehouse-loader; run smokehouse smoke tiny to bring it "
    )
    assert checkout.run("run", "tiny", "--", "true").stderr == f"{older}up to date\n"
    ended = checkout.run("smoke", "tiny", UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert checkout.run("run", "tiny", "--", "true").stderr == ""
    assert (ended.returncode, ended.stderr) == (0, "smokehouse: installing smokehouse-loader 0.1.0\n")
    assert installed(checkout.installed).read_text().endswith("# changed\n")
    assert (checkout.marker.stat().st_mtime_ns, other.stat().st_ino) == (marked, before)
    use(checkout.installed)
    # A removed module is removed.
    (sources / "ready.py").unlink()
    checkout.run("smoke", "tiny")
    assert not installed(checkout.installed).with_name("ready.py").exists()


def test_removed_loader_is_installed_again(checkout: TestCheckout) -> None:
    checkout.lock()
    checkout.run("smoke", "tiny")
    command = ["uv", "pip", "uninstall", "--python", str(checkout.installed), "smokehouse-loader"]
    subprocess.run(command, env=checkout.environ, check=True, capture_output=True, timeout=60)
    assert checkout.run("smoke", "tiny").stderr == "smokehouse: installing smokehouse-loader 0.1.0\n"
    use(checkout.installed)


def test_interrupted_installation_is_made_again(checkout: TestCheckout, sources: Path) -> None:
    checkout.lock()
    checkout.run("smoke", "tiny")
    pyproject = checkout.root / PROJECT / "pyproject.toml"
    text = pyproject.read_text()
    pyproject.write_text(text.replace("[project]", "[projekt]"))
    said = checkout.refused("smoke", "tiny")
    assert re.search(r"smokehouse-loader: expected to build one wheel, found .*; install Smokehouse again", said)
    pyproject.write_text(text)
    assert checkout.run("smoke", "tiny").stderr == "smokehouse: installing smokehouse-loader 0.1.0\n"


def test_prefix_has_it_wherever_it_is_moved(
    checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path, sources: Path
) -> None:
    checkout.lock("--channel", str(channel.folder))
    target, moved = tmp_path / "my disk" / "tiny", tmp_path / "moved"
    command = ["install", "tiny", str(target), "--channel", channel.url]
    assert checkout.run(*command).returncode == 0
    use(target)
    inode = target.stat().st_ino
    (sources / "fit.py").write_text((sources / "fit.py").read_text() + "# changed\n")
    ended = checkout.run("run", "--prefix", str(target), "tiny", "--", "true")
    assert f"from an older smokehouse-loader; run smokehouse install tiny '{target}' to bring it up to date" in ended.stderr
    ended = checkout.run(*command, UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert ended.returncode == 0, ended.stderr
    assert "installing tiny" not in ended.stderr
    assert target.stat().st_ino == inode
    assert installed(target).read_text().endswith("# changed\n")
    target.rename(moved)
    program = [str(moved / "bin" / "smokehouse-loader"), "failures"]
    ended = subprocess.run(program, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("# Known failures\n")


def test_installation_from_a_bundle_has_it(checkout: TestCheckout, channel: Channel, index: Index, tmp_path: Path) -> None:
    checkout.lock("--channel", str(channel.folder))
    bundle, target = tmp_path / "bundle", tmp_path / "target"
    assert checkout.run("bundle", "tiny", str(bundle), "--channel", channel.url).returncode == 0
    ended = without_network(checkout, "install", "tiny", str(target), "--bundle", str(bundle))
    assert ended.returncode == 0, ended.stderr
    use(target)


def test_missing_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smokehouse.checkout.__file__", str(tmp_path / "src" / "smokehouse" / "checkout.py"))
    with pytest.raises(UserError, match="expected the project of smokehouse-loader, not found; install Smokehouse again"):
        Checkout(tmp_path).loader()
