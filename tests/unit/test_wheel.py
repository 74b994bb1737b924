"""The wheel: everything that those without a checkout need, installed without a network."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from smokehouse.checkout import Checkout
from smokehouse.installs import loader

from .conftest import TestCheckout

NAMES = Checkout(Path(__file__).parents[2]).environments()
DATA = ("cluster", "docker", "docs", "environments", "lockfiles", "matrix", "packages", "smoke_tests")
LINKED = "packages/smokehouse-loader/smokehouse_loader"  # a link to src/smokehouse_loader


@dataclass(frozen=True)
class Installed:
    """The command of an installed wheel, and the environment variables of a user with an empty home."""

    program: Path
    home: Path
    cwd: Path

    @property
    def data(self) -> Path:
        return next(self.program.parents[1].glob("lib/python3.*/site-packages/smokehouse/_data"))

    def run(
        self, *arguments: str, cwd: Path | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            cwd=cwd or self.cwd,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], "UV_OFFLINE": "1", **(environ or {})},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a new virtual environment, which takes dependencies from the tools and Smokehouse from the wheel."""
    from uv import find_uv_bin

    folder = tmp_path_factory.mktemp("venv") / "venv"
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "UV_CACHE_DIR": str(folder.parent / "cache")}
    python = folder / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), "--offline", "--no-index", "--no-deps", str(wheel)],
    ):
        subprocess.run([find_uv_bin(), *command], env=environ, check=True, timeout=120)
    packages = next(folder.glob("lib/python3.*/site-packages"))
    (packages / "tools.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "smokehouse"


@pytest.fixture
def installed(program: Path, tmp_path: Path) -> Installed:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return Installed(program, tmp_path / "home", tmp_path / "work")


def test_the_wheel_has_each_tracked_file_that_programs_read(root: Path, wheel: Path) -> None:
    places = [*DATA, "src/smokehouse_loader"]
    listed = subprocess.run(["git", "ls-files", *places], cwd=root, check=True, capture_output=True, text=True, timeout=60)
    tracked = {name.replace("src/smokehouse_loader", LINKED, 1) for name in listed.stdout.splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("smokehouse/_data/") for name in archive.namelist() if "/_data/" in name}
    assert packed == {name for name in tracked if (root / name).is_file()}


def test_the_loader_is_no_part_of_the_wheel_but_built_from_it(root: Path, wheel: Path, program: Path, tmp_path: Path) -> None:
    """Byte for byte as a checkout builds it: two distributions with the same files could not be installed side by side."""
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"smokehouse", "smokehouse-0.1.0.dist-info"}
    script = (
        "import pathlib, sys; from smokehouse.checkout import Checkout; from smokehouse.installs import loader\n"
        "print(loader.build(Checkout.find(pathlib.Path.cwd()), pathlib.Path(sys.argv[1])).sha256)"
    )
    (tmp_path / "unpacked").mkdir()
    command = [str(program.with_name("python")), "-c", script, str(tmp_path)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SOURCE_DATE_EPOCH": "1"}
    ended = subprocess.run(command, cwd=tmp_path / "unpacked", env=environ, capture_output=True, text=True, timeout=60)
    (tmp_path / "checkout").mkdir()
    assert ended.stdout.strip() == loader.build(Checkout(root), tmp_path / "checkout").sha256, ended.stderr


def test_environments_and_locks_of_the_wheel_are_used(installed: Installed) -> None:
    ended = installed.run("list", "--json")
    assert [row["name"] for row in json.loads(ended.stdout)] == NAMES, ended.stderr
    assert installed.run("lock", "--check").returncode == 0
    found = json.loads(installed.run("show", "qwen2.5-vl", "--json").stdout)
    assert found["proven_on"]
    assert Path(found["files"]["lock"]) == installed.data / "lockfiles" / "qwen2.5-vl"
    assert installed.run("--version").stdout == "smokehouse 0.1.0\n"


def test_the_smoke_test_of_the_wheel_finds_itself_and_the_loader(installed: Installed) -> None:
    ended = installed.run("smoke", "--help")
    assert ended.returncode == 0, ended.stderr
    home = installed.home / ".local" / "share" / "smokehouse"
    assert f"Reports go to {home}/smoke, environments to {home}/environments." in ended.stdout
    refused = installed.run("smoke", "--zero", "9", "qwen2-vl")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("smokehouse: smoke: argument --zero: '9' is an invalid list of ZeRO stages")
    assert not [*installed.home.rglob("*")]
    assert not [*installed.cwd.iterdir()]


@pytest.mark.parametrize(
    ("environ", "place"),
    [({"SMOKEHOUSE_HOME": "{home}/mine"}, "mine"), ({"XDG_DATA_HOME": "{home}/data"}, "data/smokehouse")],
)
def test_the_user_chooses_where_environments_go(installed: Installed, environ: dict[str, str], place: str) -> None:
    chosen = {name: text.format(home=installed.home) for name, text in environ.items()}
    assert (
        f"environments to {installed.home / place}/environments.\n" in installed.run("smoke", "--help", environ=chosen).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "what", "missing"),
    [
        (["lock"], "lock", "environments"),
        (["lock", "qwen2-vl"], "lock", "environments"),
        (["lock", "--tools"], "lock --tools", "environments"),
        (["lock", "--base"], "lock --base", "docker/base.toml"),
        (["docs"], "docs", "environments"),
    ],
)
def test_the_installed_package_is_never_changed(installed: Installed, arguments: list[str], what: str, missing: str) -> None:
    ended = installed.run(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"smokehouse: {what}: expected {missing} in this folder or a parent, found it only in the ")


def test_environments_of_the_user_come_first(installed: Installed, root: Path) -> None:
    own, below = installed.cwd / "environments" / "qwen2-vl", installed.cwd / "below"
    own.mkdir(parents=True)
    below.mkdir()
    shutil.copytree(root / "environments" / "qwen2-vl", own, dirs_exist_ok=True)
    shutil.copytree(root / "environments" / "stacks", own.with_name("stacks"))
    (installed.cwd / "docker").mkdir()  # a folder that has nothing to do with Smokehouse
    rows = {row["name"]: row for row in json.loads(installed.run("list", "--json", cwd=below).stdout)}
    assert [*rows] == NAMES
    assert rows["qwen2-vl"]["problem"] == "lockfiles/qwen2-vl/lock.json: not found; run smokehouse lock qwen2-vl"
    assert rows["qwen2.5-vl"]["proven_on"]
    text = installed.run("smoke", "--help", cwd=below).stdout
    assert f"environments to {installed.cwd}/build/environments" in text
    refused = installed.run("lock", "qwen2.5-vl", cwd=below)
    assert refused.returncode == 2
    assert f"qwen2.5-vl: expected an environment of {installed.cwd}, found one of the installed package" in refused.stderr
    checked = installed.run("lock", "--check")
    assert (checked.returncode, "tools.txt" in checked.stderr) == (1, False)


def _without_dependencies(root: Path) -> str:
    """Return overrides for uv by which no dependency of Smokehouse is installed."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return "".join(f"{Requirement(text).name}; sys_platform == 'none'\n" for text in project["dependencies"])


def _uvx(wheel: Path, folder: Path) -> list[str]:
    from uv import find_uv_bin

    overrides = folder / "overrides.txt"
    overrides.write_text(_without_dependencies(Path(__file__).parents[2]))
    options = ["--offline", "--no-index", "--overrides", str(overrides), "--python", sys.executable]
    return [find_uv_bin(), "tool", "run", *options, "--from", str(wheel), "smokehouse"]


def _pip(wheel: Path, folder: Path) -> list[str]:
    program = folder / "venv" / "bin"
    install = [str(program / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    for command in ([sys.executable, "-m", "venv", str(folder / "venv")], install):
        subprocess.run(command, check=True, timeout=120, env={"PATH": os.environ["PATH"], "HOME": str(folder)})
    return [str(program / "smokehouse")]


@pytest.mark.parametrize("way", [_uvx, _pip])
def test_an_environment_is_installed_and_proven_without_a_clone(
    root: Path, wheel: Path, checkout: TestCheckout, tmp_path: Path, way: Callable[[Path, Path], list[str]]
) -> None:
    """By uvx and by pip, with an empty home, in a folder of one's own: lock, smoke, show and run.

    Dependencies come from the tools, as no test asks a live index.
    """
    (home := tmp_path / "home").mkdir()
    for name in ("pyproject.toml", "lockfiles/tools.txt"):  # of a checkout, which this user has not
        (checkout.root / name).unlink()
    shutil.copy(root / "smoke_tests" / "report.schema.json", checkout.root / "smoke_tests")  # its stand-in has none
    program = way(wheel, tmp_path)
    environ = {name: value for name, value in checkout.environ.items() if not name.startswith(("XDG_", "SMOKEHOUSE_HOME"))}
    environ |= {"HOME": str(home), "PYTHONPATH": sysconfig.get_path("purelib")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [*program, *arguments], cwd=checkout.root, env=environ, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    run("lock", "tiny")
    smoke = json.loads(run("smoke", "--zero", "3", "tiny").stdout)
    assert Path(smoke["python"]) == checkout.installed / "bin" / "python"
    assert Path(smoke["alpha"]).is_relative_to(checkout.installed)
    assert smoke["argv"][smoke["argv"].index("--report") + 1] == str(checkout.root / "build" / "smoke" / "tiny-zero3")
    assert [row["name"] for row in json.loads(run("list", "--json").stdout)] == sorted([*NAMES, "tiny"])
    assert json.loads(run("show", "tiny", "--json").stdout)["files"]["installation"] == str(checkout.installed)
    imported = run("run", "tiny", "--", "python", "-c", "import alpha; print(alpha.__file__)").stdout.strip()
    assert Path(imported) == Path(smoke["alpha"])


@pytest.mark.parametrize(("shell", "variable"), [("bash", "COMP_WORDS"), ("zsh", "_TYPER_COMPLETE_ARGS")])
def test_shells_complete_verbs_and_environments_of_the_wheel(installed: Installed, shell: str, variable: str) -> None:
    for line, word in (("smokehouse sm", "smoke"), ("smokehouse show qwen2.5-vl-l", "qwen2.5-vl-latest")):
        cword = str(len(line.split()) - 1)
        environ = {"_SMOKEHOUSE_COMPLETE": f"complete_{shell}", variable: line, "COMP_CWORD": cword}
        assert word in installed.run(environ=environ).stdout


def test_the_doctor_runs_from_the_wheel(installed: Installed) -> None:
    ended = installed.run("doctor", "qwen2-vl", "--json")
    places = {finding["where"] for finding in json.loads(ended.stdout)["findings"]}
    assert {"/dev/shm", f"{installed.home}/.local/share/smokehouse"} <= places
