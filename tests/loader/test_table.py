"""The table of known failures, and what is made from it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse_loader.failures import FAILURES, page


def functions(root: Path) -> set[str]:
    """The names of all functions in reproductions.py."""
    tree = ast.parse((root / "tests/loader/inside/reproductions.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_has_a_reproduction_of_its_own(root: Path) -> None:
    named = [failure.reproduction for failure in FAILURES]
    assert len(set(named)) == len(named)
    assert set(named) <= functions(root)


def test_no_reproduction_is_unused(root: Path) -> None:
    tree = ast.parse((root / "tests/loader/inside/reproductions.py").read_text())
    takes_bench = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and [argument.arg for argument in node.args.args] == ["bench"]
    }
    assert takes_bench == {failure.reproduction for failure in FAILURES}


def test_names_are_unique_and_texts_whole() -> None:
    assert len({failure.name for failure in FAILURES}) == len(FAILURES)
    for failure in FAILURES:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", failure.name)
        assert failure.cause.endswith(".")
        assert failure.source
        assert "\n" not in failure.cause + failure.cure + failure.source
        assert not failure.cure.endswith(".")
        for pattern in failure.patterns:
            re.compile(pattern)


def test_every_finding_names_an_entry(root: Path) -> None:
    names = {failure.name for failure in FAILURES}
    used = set()
    for file in (root / "src/smokehouse_loader").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
                "Finding",
                "BadFileError",
                "_finding",
                "finding",
                "refused",
                "cure_of",
            }:
                used |= {first.value for first in node.args[:1] if isinstance(first, ast.Constant)}
    assert len(used) > 20
    assert used <= names


def test_the_page_is_generated(root: Path) -> None:
    assert (root / "docs/known-failures.md").read_text("utf-8") == page()


@pytest.mark.parametrize(("text", "code"), [(None, 0), ("# Known failures\n", 1)])
def test_check_of_the_page(root: Path, tmp_path: Path, text: str | None, code: int) -> None:
    file = tmp_path / "page.md"
    file.write_text(page() if text is None else text)
    command = [sys.executable, "-m", "smokehouse_loader", "failures", "--check", str(file)]
    ended = subprocess.run(command, cwd=root / "src", capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == code
