"""The documentation: its commands exist, its links resolve, and the README is short."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import typer

from smokehouse.cli import app
from smokehouse.runs import pop_option
from smokehouse_loader.__main__ import main as loader_main

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()
_PAGES = [
    *(_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docker/README.md")),
    *sorted((_ROOT / "docs").rglob("*.md")),
]
_VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# In a line of a code block, or between backticks in text, where a session may be mentioned without its arguments.
_COMMAND = re.compile(r"(?:\bnox -s |python -m smokehouse(?:_loader)? )[^`\n]*")
_MENTION = re.compile(r"`nox -s [\w ]+`")
_CODE = re.compile(r"^(`{3,}).*?^\1$", re.DOTALL | re.MULTILINE)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_commands = _load("commands", _ROOT / "docs" / "site" / "commands.py")
_SESSIONS = _commands.sessions()


@pytest.fixture(scope="module")
def smoke_help() -> str:
    """Return the help of the smoke test."""
    command = [sys.executable, "-m", "smokehouse", "smoke", "--help"]
    environ = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT, env=environ, timeout=60).stdout


def _documented() -> Iterator[tuple[str, str]]:
    """Yield each documented command with its page."""
    for page in _PAGES:
        text = re.sub("<!--.*?-->", "", page.read_text()).replace("\\\n", " ")
        if page.name == "commands.md":
            text = _CODE.sub("", text)  # the help itself
        for command in _COMMAND.findall(_MENTION.sub("", text)):
            # What is in brackets may be left out, and a pipe ends the command.
            yield str(page.relative_to(_ROOT)), re.sub(r"[\[\]]", "", command.partition(" | ")[0]).strip()


_DOCUMENTED = sorted({*_documented()})


@pytest.mark.parametrize(("page", "command"), _DOCUMENTED)
def test_command_is_accepted(page: str, command: str, smoke_help: str) -> None:
    words = shlex.split(command, comments=True)
    if words[1] == "-s":
        names, _, arguments = " ".join(map(shlex.quote, words[2:])).partition(" -- ")
        for session in names.split():
            assert session in {*_SESSIONS, "VERB"}
            _parse(session, shlex.split(arguments), smoke_help)
    elif words[2] == "smokehouse_loader":
        # Its parser ends the process for a wrong option; no documented file exists, so that nothing is done.
        assert words[3] == "failures" or loader_main(words[3:]) == 2
    else:
        _parse(words[3], words[4:], smoke_help)


def _parse(session: str, arguments: list[str], smoke_help: str) -> None:
    """Parse the arguments as the session does; the parser raises for a wrong one."""
    if session == "smoke":
        for option in ("--bundle", "--image"):
            arguments, _ = pop_option(arguments, option, "a value")
        for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
            assert re.search(rf"{re.escape(option)}\b", smoke_help)
    elif session in _VERBS:
        _VERBS[session].make_context(session, arguments, resilient_parsing="--help" in arguments)
    elif session == "drift":
        _VERBS["lock"].make_context("lock", ["--drift", *arguments])
    elif session == "benchmark" and arguments:
        assert (_ROOT / "benchmarks" / f"{arguments[0]}.py").is_file()
    elif session == "tests":
        assert all((_ROOT / argument).exists() for argument in arguments if argument.startswith("tests/"))


def test_containers_with_gpus_get_shared_memory() -> None:
    """Docker's default is 64 MiB, in which NCCL cannot start."""
    places = [*_PAGES, *(path for path in (_ROOT / "docker").rglob("*") if path.is_file() and path.suffix in ("", ".md"))]
    places += (_ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    text = "\n".join(page.read_text() for page in places)
    lines = {line.strip() for line in text.splitlines() if re.search(r"docker run\b.*--gpus", line)}
    assert len(lines) > 5
    assert [line for line in lines if "--shm-size" not in line and "--ipc" not in line] == []


def test_every_session_is_mentioned_and_no_other() -> None:
    mentioned = {name for page in _PAGES for mention in _MENTION.findall(page.read_text()) for name in mention.split()[2:]}
    used = {words[2] for words in (command.split() for _, command in _DOCUMENTED) if words[1] == "-s"}
    assert {name.strip("`") for name in mentioned} | used == {*_SESSIONS, "VERB"}


def test_reference_is_up_to_date() -> None:
    command = [sys.executable, "docs/site/commands.py", "--check"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=_ROOT, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _CODE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)", text):
        path, _, anchor = unquote(link).partition("#")
        if path.startswith("https://"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: not found"
        assert not anchor or anchor in _anchors(target), f"{link}: heading not found"


def _anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"(\S+\.md)$", (_ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(_ROOT / "docs")) for page in _PAGES if page.is_relative_to(_ROOT / "docs")}


def test_readme_shows_what_the_benchmark_of_images_printed() -> None:
    [shown] = re.findall(r"^<!-- benchmark image -->\n(.*?)^<!-- /benchmark image -->$", _README, flags=re.M | re.S)
    assert [line.count("|") for line in shown.splitlines()] == [6] * 7
    assert shown in (_ROOT / "docs" / "benchmarks.md").read_text(), "copy the table from docs/benchmarks.md to README.md"


def test_readme_is_short() -> None:
    """As far as it is written by hand: the table of environments has a line for each, and a benchmark printed the other."""
    text = re.sub(r"^<!-- (environments|benchmark image) -->.*?^<!-- /\1 -->", "", _README, flags=re.M | re.S)
    assert len(text.splitlines()) < 150
