"""Compiled files that a full disk cut are found and compiled again, or are gone."""

import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.installs import bytecode

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LARGE = 9 << 20  # bytes of a module, and of what it is compiled to


def environment(folder: Path, size: int) -> tuple[Path, Path]:
    """Make an environment with a module of `size` bytes; return its source, and the place of what it is compiled to."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    source = folder / "lib" / f"python{PYTHON}" / "site-packages" / "large.py"
    source.parent.mkdir(parents=True)
    source.write_text(f"text = {'#' * size!r}\n")
    compiled = Path(importlib.util.cache_from_source(source))
    compiled.parent.mkdir()
    return source, compiled


def test_a_full_disk_cuts_what_python_compiles(full_disk: Path) -> None:
    """Where this fails, Python writes what it compiles as a whole, and nothing here is needed for that version any more."""
    source, compiled = environment(full_disk / "p", LARGE)
    try:
        py_compile.compile(str(source), str(compiled), doraise=True)
    except OSError:
        pytest.skip("this Python notices a short write")
    assert compiled.stat().st_size % 4096 == 0
    assert bytecode.cut(full_disk / "p", PYTHON, contents=False) == [compiled]
    name = compiled.relative_to(full_disk / "p")
    said = rf"/p: expected whole compiled files, found {name} cut, as by a disk that is full; free"
    with pytest.raises(UserError, match=said):
        bytecode.repair(full_disk / "p", PYTHON)
    assert not compiled.exists()


def test_a_cut_file_without_a_source_is_removed(tmp_path: Path) -> None:
    source, compiled = environment(tmp_path, 10)
    py_compile.compile(str(source), str(compiled), doraise=True)
    source.unlink()
    compiled.write_bytes(compiled.read_bytes()[:16].ljust(512, b"\xe3"))
    with pytest.raises(UserError, match=r"large\..*\.pyc cut"):
        bytecode.repair(tmp_path, PYTHON)
    bytecode.repair(tmp_path, PYTHON)
    assert not compiled.exists()


@pytest.mark.parametrize("mode", py_compile.PycInvalidationMode)
def test_what_is_compiled_again_is_compared_as_before(mode: py_compile.PycInvalidationMode, tmp_path: Path) -> None:
    source, compiled = environment(tmp_path, 1000)
    py_compile.compile(str(source), str(compiled), doraise=True, invalidation_mode=mode)
    whole = compiled.read_bytes()
    compiled.write_bytes(whole[:512])
    bytecode.repair(tmp_path, PYTHON)
    assert compiled.read_bytes() == whole


def test_links_are_not_followed(tmp_path: Path) -> None:
    _, compiled = environment(tmp_path, 10)
    (tmp_path / "mine").write_bytes(importlib.util.MAGIC_NUMBER.ljust(512, b"x"))
    compiled.symlink_to(tmp_path / "mine")
    bytecode.repair(tmp_path, PYTHON)
    assert compiled.is_symlink()


@pytest.mark.parametrize("program", ["#!/bin/sh\necho broken >&2; exit 3\n", ""])
def test_a_python_that_does_not_run(program: str, tmp_path: Path) -> None:
    _, compiled = environment(tmp_path, 10)
    compiled.write_bytes(b"")
    python = tmp_path / "bin" / "python"
    python.unlink()
    python.write_text(program)
    python.chmod(0o755)
    with pytest.raises(
        UserError, match=rf"{python}: (cannot read the compiled files \(broken\)|does not run \(.*\)); remove that"
    ):
        bytecode.repair(tmp_path, PYTHON)
