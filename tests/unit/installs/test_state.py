"""An installation is what it says: verified before it is complete, repaired where files are gone, updated in part."""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Index, TestCheckout, wheel


def packages(folder: Path) -> Path:
    [found] = folder.glob("lib/python*/site-packages")
    return found


def _rename(folder: Path) -> None:
    next(packages(folder).glob("beta-*/")).rename(packages(folder) / "beta-9.dist-info")


def _remove(folder: Path) -> None:
    shutil.rmtree(next(packages(folder).glob("beta-*/")))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "module gone": (lambda folder: (packages(folder) / "gamma.py").unlink(), "gamma.py of gamma: not found"),
    "module empty": (
        lambda folder: (packages(folder) / "alpha.py").write_text(""),
        "alpha.py of alpha: expected 55 bytes, found 0",
    ),
    "script gone": (lambda folder: (folder / "bin" / "alpha").unlink(), "bin/alpha of alpha: not found"),
    "package gone": (_remove, "beta: expected 2.0, not installed"),
    "record gone": (lambda folder: next(packages(folder).glob("beta*/RECORD")).unlink(), "RECORD of beta: not found"),
    "constraints gone": (lambda folder: (folder / "constraints.txt").unlink(), "constraints.txt: not found"),
    "other version": (_rename, "beta: expected 2.0, found 9"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_second_call_notices_and_repairs(checkout: TestCheckout, tmp_path: Path, damage: str) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    command = ("install", "tiny", str(prefix), "--only", "pip")
    assert checkout.run(*command).returncode == 0
    break_it, problem = DAMAGE[damage]
    break_it(prefix)
    checked = checkout.run("install", "tiny", str(prefix), "--check")
    assert checked.returncode == 1, checked.stderr
    assert problem in checked.stdout
    # Where a package lost its list, its files are nobody's, which is only seen when all are read.
    more = " --repair" if "unexpected" in checked.stdout or "not in the lock" in checked.stdout else ""
    assert checked.stderr.endswith(f"differences; to repair it, run smokehouse install tiny {prefix} --only pip{more}\n")
    assert checkout.run(*command).returncode == 0
    again = checkout.run("install", "tiny", str(prefix), "--check")
    assert (again.returncode, again.stdout) == (0, ""), again.stdout


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("lib/libtiny.txt", "lib/libtiny.txt of libtiny: not found"),
        ("bin/python3", "bin/python3 of python: not found"),
        ("conda-meta/certificates-1.0-0.json", "conda package certificates: expected 1.0-0, not installed"),
    ],
)
def test_damaged_conda_packages_are_replaced(checkout: TestCheckout, tmp_path: Path, path: str, problem: str) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    assert checkout.run("install", "tiny", str(prefix)).returncode == 0
    assert checkout.run("install", "tiny", str(prefix), "--check").returncode == 0
    (prefix / path).unlink()
    assert problem in checkout.run("install", "tiny", str(prefix), "--check").stdout
    assert checkout.run("install", "tiny", str(prefix)).returncode == 0
    assert checkout.run("install", "tiny", str(prefix), "--check").returncode == 0
    assert (prefix / path).exists()


def test_check_reads_what_has_the_right_size(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    assert checkout.run("install", "tiny", str(prefix)).returncode == 0
    module = packages(prefix) / "alpha.py"
    module.write_text(module.read_text().replace("hello", "hullo"))
    library = prefix / "lib" / "libtiny.txt"
    library.write_text("9.9\n")
    (packages(prefix) / "mine-1.0.dist-info").mkdir()
    (packages(prefix) / "mine-1.0.dist-info" / "RECORD").write_text("mine-1.0.dist-info/RECORD,,\n")
    (packages(prefix) / "at_start.pth").write_text("import os\n")
    (packages(prefix) / "alpha_more").mkdir()
    (packages(prefix) / "alpha_more" / "extra.so").write_bytes(b"")
    strays = ("alpha_more/extra.so", "at_start.pth")
    lines = checkout.run("install", "tiny", str(prefix), "--check").stdout.splitlines()
    assert [re.sub("[0-9a-f]{64}", "X", line) for line in lines] == [
        "mine: 1.0 is installed, not in the lock",
        "lib/libtiny.txt of libtiny: expected SHA-256 X, found X",
        f"{module.relative_to(prefix)} of alpha: expected SHA-256 X, found X",
        *(f"{(packages(prefix) / name).relative_to(prefix)}: unexpected, no package lists it; remove it" for name in strays),
    ]


def _edit(path: Path) -> None:
    """Change a file and nothing that its folder or size shows; it may be that of uv's cache."""
    data = path.read_bytes()
    assert data
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def _add(info: Path) -> None:
    """Add a package that lists its own list alone."""
    info.mkdir()
    (info / "RECORD").write_text(f"{info.name}/RECORD,,\n")


UNSEEN: dict[str, Callable[[Path], object]] = {
    "module edited": lambda folder: _edit(packages(folder) / "alpha.py"),
    "module edited in its end": lambda folder: (packages(folder) / "alpha.py").write_bytes(
        (packages(folder) / "alpha.py").read_bytes()[:-1] + b"#"
    ),
    "metadata edited": lambda folder: _edit(next(packages(folder).glob("beta-*/METADATA"))),
    "script edited": lambda folder: _edit(folder / "bin" / "alpha"),
    "runs at start": lambda folder: (packages(folder) / "at_start.pth").write_text("import os\n"),
    "module of nobody": lambda folder: (packages(folder) / "extra.py").write_text(""),
    "package of nobody": lambda folder: _add(packages(folder) / "mine-1.0.dist-info"),
    "compiled file cut": lambda folder: next(packages(folder).glob("__pycache__/gamma.*.pyc")).write_bytes(
        next(packages(folder).glob("__pycache__/gamma.*.pyc")).read_bytes()[:70]
    ),
}


@pytest.mark.parametrize("only", [[], ["--only", "pip"]])
@pytest.mark.parametrize("damage", UNSEEN)
def test_the_command_that_a_check_names_repairs(checkout: TestCheckout, tmp_path: Path, damage: str, only: list[str]) -> None:
    """What is only seen when files are read, a second call says that it did not read."""
    checkout.lock()
    prefix = tmp_path / "a prefix"
    command = ("install", "tiny", str(prefix), *only)
    assert checkout.run(*command).returncode == 0
    UNSEEN[damage](prefix)
    again = checkout.run(*command)
    assert (again.returncode, again.stdout) == (0, f"{prefix / 'bin' / 'python'}\n")
    assert f"smokehouse: {prefix}: as installed, by names and sizes of files; --repair reads them\n" in again.stderr
    checked = checkout.run("install", "tiny", str(prefix), "--check")
    assert checked.returncode == 1
    remedy = checked.stderr.rpartition("; to repair it, run smokehouse ")[2]
    assert shlex.split(remedy) == [*command, "--repair"]
    repaired = checkout.run(*shlex.split(remedy))
    assert repaired.returncode == 0, repaired.stderr
    checked = checkout.run("install", "tiny", str(prefix), "--check")
    assert (checked.returncode, checked.stdout) == (0, "")
    assert checkout.run("run", "--prefix", str(prefix), "tiny", "--", "alpha").stdout == "hello\n"
    nothing = checkout.run(*shlex.split(remedy))
    assert f"smokehouse: {prefix}: as installed, every file\n" in nothing.stderr


def test_the_command_that_repairs_has_the_options_of_the_installation(
    checkout: TestCheckout, index: Index, tmp_path: Path
) -> None:
    checkout.lock()
    added = tmp_path / "delta-1.0-py3-none-any.whl"
    added.write_bytes(wheel("delta", "1.0"))
    digest = hashlib.sha256(added.read_bytes()).hexdigest()
    prefix, final = tmp_path / "p", tmp_path / "final"
    options = ("--devel", "--used-as", str(final), "--with", f"{added}#sha256={digest}")
    assert checkout.run("install", "tiny", str(prefix), *options).returncode == 0
    _edit(packages(prefix) / "alpha.py")
    checked = checkout.run("install", "tiny", str(prefix), "--check")
    wanted = f"--devel --used-as {final} --with '{added.name}#sha256={digest}' --repair"
    assert checked.stderr.endswith(f"to repair it, run smokehouse install tiny {prefix} {wanted}\n"), checked.stderr


@pytest.mark.parametrize("only", [[], ["--only", "pip"]])
def test_only_packages_that_changed_are_installed_again(
    checkout: TestCheckout, index: Index, tmp_path: Path, only: list[str]
) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    assert checkout.run("install", "tiny", str(prefix), *only).returncode == 0
    inodes = {name: (packages(prefix) / f"{name}.py").stat().st_ino for name in ("alpha", "gamma")}
    index.add("gamma", "1.7", code="new = True\n")
    checkout.edit(checkout.environment, "      - beta\n", "      - gamma==1.7\n")
    checkout.lock()
    ended = checkout.run("install", "tiny", str(prefix), *only, SMOKEHOUSE_CHANNEL="http://127.0.0.1:9")
    assert ended.returncode == 0, ended.stderr
    assert "installing 1 of 2 PyPI packages, 1 removed; the others are there" in ended.stderr
    assert (packages(prefix) / "alpha.py").stat().st_ino == inodes["alpha"]
    assert (packages(prefix) / "gamma.py").read_text() == "new = True\n"
    assert not (packages(prefix) / "beta.py").exists()
    assert checkout.run("install", "tiny", str(prefix), "--check").returncode == 0


def test_the_same_version_of_another_file_is_installed_again(checkout: TestCheckout, index: Index, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    assert checkout.run("install", "tiny", str(prefix), "--only", "pip").returncode == 0
    index.put("gamma-1.5-py3-none-any.whl", wheel("gamma", "1.5", code="other = True\n"))
    checkout.lock()
    assert checkout.run("install", "tiny", str(prefix), "--only", "pip").returncode == 0
    assert (packages(prefix) / "gamma.py").read_text() == "other = True\n"


def test_an_update_that_fails_is_not_taken_for_complete(checkout: TestCheckout, index: Index, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    command = ("install", "tiny", str(prefix), "--only", "pip")
    assert checkout.run(*command).returncode == 0
    index.add("gamma", "1.7")
    checkout.edit(checkout.environment, "      - beta\n", "      - gamma==1.7\n")
    checkout.lock()
    index.files["gamma-1.7-py3-none-any.whl"].sent = wheel("gamma", "1.7", code="evil = True\n")
    assert "hash mismatch" in checkout.refused(*command)
    assert "expected an installation of tiny" in checkout.refused("run", "--prefix", str(prefix), "tiny", "--", "alpha")
    index.files["gamma-1.7-py3-none-any.whl"].sent = None
    assert checkout.run(*command).returncode == 0
    assert checkout.run("run", "--prefix", str(prefix), "tiny", "--", "alpha").stdout == "hello\n"


HOSTILE = {
    "UV_LINK_MODE": "symlink",
    "UV_TARGET": "elsewhere",
    "UV_PREFIX": "elsewhere",
    "UV_NO_BINARY": "1",
    "UV_CONSTRAINT": "/nowhere.txt",
    "UV_OVERRIDE": "/nowhere.txt",
    "UV_EXCLUDE_NEWER": "2001-01-01",
    "UV_PYTHON": "3.8",
    "UV_DRY_RUN": "1",
    "UV_SYSTEM_PYTHON": "1",
    "UV_PROJECT_ENVIRONMENT": "elsewhere",
    "PIP_TARGET": "elsewhere",
    "PIP_CONSTRAINT": "/nowhere.txt",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPYCACHEPREFIX": "/nowhere",
    "VIRTUAL_ENV": "/nowhere",
}


def test_variables_of_uv_pip_and_python_change_nothing(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "p"
    ended = checkout.run("install", "tiny", str(prefix), **HOSTILE)
    assert ended.returncode == 0, ended.stderr
    assert not (checkout.root / "elsewhere").exists()
    assert not [path for path in packages(prefix).rglob("*") if path.is_symlink()]
    assert checkout.run("install", "tiny", str(prefix), "--check").returncode == 0
    assert checkout.run("run", "--prefix", str(prefix), "tiny", "--", "alpha").stdout == "hello\n"


def test_links_into_a_cache_are_refused(checkout: TestCheckout, tmp_path: Path) -> None:
    """A configuration file may still request them: what is there is compared before it is called complete."""
    checkout.lock()
    config, prefix = tmp_path / "uv.toml", tmp_path / "p"
    config.write_text('link-mode = "symlink"\n')
    said = checkout.refused("install", "tiny", str(prefix), "--only", "pip", UV_CONFIG_FILE=str(config))
    assert "expected what the lock specifies, found after the installation: " in said
    assert "expected a file, found a link" in said
    assert json.loads((prefix / ".smokehouse.json").read_text())["unfinished"]
