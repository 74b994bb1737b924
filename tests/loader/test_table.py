"""Test the table of known failures and the page generated from it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse_loader.__main__ import page
from smokehouse_loader.failures import BY_NAME, FAILURES, Sign
from smokehouse_loader.signs import pattern


def functions(root: Path) -> dict[str, list[str]]:
    """Return name -> names of parameters of all functions in reproductions.py."""
    tree = ast.parse((root / "tests/loader/inside/reproductions.py").read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [argument.arg for argument in node.args.args] for node in nodes}


def test_each_failure_has_its_own_reproduction(root: Path) -> None:
    reproductions = [failure.reproduction for failure in FAILURES if failure.reproduction]
    assert len(set(reproductions)) == len(reproductions)
    assert set(reproductions) <= functions(root).keys()


def test_no_reproduction_is_unused(root: Path) -> None:
    reproductions = {name for name, parameters in functions(root).items() if parameters == ["context"]}
    assert reproductions == {failure.reproduction for failure in FAILURES if failure.reproduction}


def test_what_only_a_gpu_shows_has_a_public_source() -> None:
    listed = [failure for failure in FAILURES if failure.only_on_gpu]
    assert len(listed) > 5
    for failure in listed:
        assert not failure.reproduction
        assert failure.signs
        assert re.search(r"issues? #\d+|README", failure.source), failure.name
        assert "measured" not in failure.source


def test_names_are_unique_and_texts_complete() -> None:
    assert len({failure.name for failure in FAILURES}) == len(FAILURES)
    for failure in FAILURES:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", failure.name)
        assert failure.cause.endswith(".")
        assert failure.source
        assert "\n" not in failure.cause + failure.cure + failure.source
        assert not failure.cure.endswith(".")
        assert failure.signs or failure.reproduction, failure.name
        assert failure.name not in failure.excludes
        assert set(failure.excludes) <= BY_NAME.keys(), failure.name
        for sign in failure.signs:
            assert searchable(sign), sign
            for names in (sign.any_name, sign.all_names, sign.no_name):
                re.compile(names)


def searchable(sign: Sign) -> bool:
    """Return whether each text of a sign begins with a constant part, by which a log is searched in linear time."""
    texts = (sign.text, *sign.needs, *sign.unless, *sign.log, *sign.unless_log)
    return all(list(pattern(one).matches("")) == [] for text in texts for one in text.split(" || "))


def test_there_are_at_least_ninety() -> None:
    assert len(FAILURES) >= 90


def test_every_finding_is_in_the_table(root: Path) -> None:
    names = {failure.name for failure in FAILURES}
    used = set()
    for file in (root / "src/smokehouse_loader").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
                "Finding",
                "BadFileError",
                "_finding",
                "finding",
                "refused",
                "fix_for",
            }:
                used |= {first.value for first in node.args[:1] if isinstance(first, ast.Constant)}
    assert len(used) > 20
    assert used <= names


def test_page_is_up_to_date(root: Path) -> None:
    assert (root / "docs/known-failures.md").read_text("utf-8") == page()


@pytest.mark.parametrize(("text", "code"), [(None, 0), ("# Known failures\n", 1)])
def test_check_of_page(root: Path, tmp_path: Path, text: str | None, code: int) -> None:
    file = tmp_path / "page.md"
    file.write_text(page() if text is None else text)
    command = [sys.executable, "-m", "smokehouse_loader", "failures", "--check", str(file)]
    ended = subprocess.run(command, cwd=root / "src", capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == code


def test_what_was_measured_claims_no_public_source() -> None:
    """Where it has no reproduction, either, such as one that needs packages of a single environment."""
    entries = page().split("\n### ")[1:]
    measured = [entry for entry in entries if "- **Source:** measured by Smokehouse" in entry]
    assert len(measured) > 5
    assert not [entry for entry in measured if "the public thread" in entry]
