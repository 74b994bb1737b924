"""Help and messages show commands as the user types them, with nox or without."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar, NamedTuple

import pytest
import typer

from smokehouse.cli import app
from smokehouse.cli.main import VERBS

from ..conftest import TestCheckout

BY_NOX = {"SMOKEHOUSE_STARTED_BY": "nox"}
NAMES = [name for name, _, _ in VERBS]


@pytest.fixture
def with_smoke_tests(checkout: TestCheckout, root: Path) -> TestCheckout:
    """A checkout with the real smoke tests."""
    shutil.rmtree(checkout.root / "smoke_tests")
    (checkout.root / "smoke_tests").symlink_to(root / "smoke_tests")
    (checkout.root / "packages").symlink_to(root / "packages")
    return checkout


@pytest.mark.parametrize("verb", NAMES)
def test_help_shows_the_usage_and_ends_with_an_example(with_smoke_tests: TestCheckout, verb: str) -> None:
    for environ, command in (({}, f"smokehouse {verb}"), (BY_NOX, f"nox -s {verb} -- ")):
        ended = with_smoke_tests.run(verb, "--help", **environ)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.match(rf"usage: {command}", ended.stdout, re.IGNORECASE)
        assert "{" not in ended.stdout.splitlines()[0]
        assert re.search(rf"^ *Example: {command}.*\S\n\Z", ended.stdout, re.MULTILINE)


def test_help_says_where_things_come_from_and_go(checkout: TestCheckout) -> None:
    text = " ".join(checkout.run("--help").stdout.split())
    assert "Environments come from environments/ in this folder or a parent, then from the installed package." in text
    assert "to $SMOKEHOUSE_HOME, by default ~/.local/share/smokehouse." in text
    assert text.endswith("Example: smokehouse smoke qwen2.5-vl")


@pytest.mark.parametrize(("verb", "example"), [(name, example) for name, _, example in VERBS])
def test_each_example_is_valid(verb: str, example: tuple[str, ...]) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, [*example])


def test_each_verb_is_a_session(root: Path) -> None:
    sessions = re.findall(r'^@nox\.session(?:\(name="(\w+)"\))?\ndef (\w+)', (root / "noxfile.py").read_text(), re.MULTILINE)
    assert {*NAMES} <= {name or function for name, function in sessions}


def test_smoke_help_shows_what_is_for_users(with_smoke_tests: TestCheckout) -> None:
    text = with_smoke_tests.run("smoke", "--help").stdout
    assert "smokehouse smoke [NAME] [-h] [--zero 2,3]" in text
    assert "(default: qwen2.5-vl)" in text
    users = (
        "--zero",
        "--nproc",
        "--device",
        "--checkpoint",
        "--timeout",
        "--report",
        "--port",
        "--start",
        "--bundle",
        "--image",
    )
    assert {*users} <= {*re.findall(r"^  (--\w+)", text, re.MULTILINE)}
    assert not re.search(r"--(environment|stack|lock|validate)\b", text)
    assert "Reports go to build/smoke, environments to build/environments." in text


@pytest.mark.parametrize(("environ", "command"), [({}, "smokehouse lock tiny"), (BY_NOX, "nox -s lock -- tiny")])
def test_a_remedy_is_a_command_that_the_user_knows(checkout: TestCheckout, environ: dict[str, str], command: str) -> None:
    message = checkout.refused("bundle", "tiny", "out", **environ)
    assert message == f"smokehouse: lockfiles/tiny/lock.json: not found; run {command}"


def test_a_lock_is_the_same_whoever_makes_it(checkout: TestCheckout) -> None:
    checkout.lock()
    files = {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()}
    checkout.lock(**BY_NOX)
    assert {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()} == files


def test_version_is_printed(checkout: TestCheckout) -> None:
    ended = checkout.run("--version")
    assert ended.returncode == 0
    assert re.fullmatch(r"smokehouse (\d+\.\d+\.\d+|of this checkout, not installed)\n", ended.stdout)


def test_shells_complete_the_names_of_environments(checkout: TestCheckout) -> None:
    variables = {"_SMOKEHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": "smokehouse show ti", "COMP_CWORD": "2"}
    assert checkout.run(**variables).stdout.split() == ["tiny"]
    assert "_SMOKEHOUSE_COMPLETE" in checkout.run(_SMOKEHOUSE_COMPLETE="source_bash").stdout


def test_nox_says_where_dashes_are_missing(root: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "nox", "-s", "smoke", "qwen2.5-vl"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "nox: qwen2.5-vl: not a session; -- is missing before the arguments of smoke; run nox -s smoke -- qwen2.5-vl\n"
    )


def test_nox_refuses_options_without_dashes_and_the_reference_says_what_that_means(root: Path) -> None:
    command = [str(Path(sys.executable).with_name("nox")), "-s", "smoke", "qwen2.5-vl", "--zero", "3"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    message = "nox: error: unrecognized arguments: --zero"
    assert ended.returncode == 2
    assert message in ended.stderr  # nox's own, before it reads the noxfile
    reference = " ".join((root / "docs" / "reference" / "commands.md").read_text().split())
    assert f"`{message}` means that the `--` is missing: `nox -s smoke -- qwen2.5-vl --zero 3`" in reference


@pytest.fixture(scope="module")
def noxfile(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile_under_test", root / "noxfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("-s smoke qwen2-vl -- --zero 3", "nox -s smoke -- qwen2-vl --zero 3"),
        ("--session lock docs tiny", "nox -s lock docs -- tiny"),
        # Options that nox has, too.
        ("-s docs tiny --report build/smoke/tiny/report.json", "nox -s docs -- tiny --report build/smoke/tiny/report.json"),
        ("-s smoke --report out", "nox -s smoke -- --report out"),
        ("-s smoke --report='my out' -- tiny", "nox -s smoke -- '--report=my out' tiny"),
        ("--report sessions.json -s smoke", None),
        ("-s lint --report sessions.json", None),
        ("-s smoke -- qwen2-vl", None),
        ("-s lint tests -- --check", None),
        ("-s nonsense", None),
        ("-l", None),
    ],
)
def test_only_arguments_without_dashes_are_refused(noxfile: ModuleType, line: str, right: str | None) -> None:
    found = noxfile.misplaced(shlex.split(line), ["smoke", "lock", "docs", "lint", "tests"])
    assert found is None if right is None else found.endswith(f"run {right}")


def test_sessions_share_one_environment_that_is_quiet_when_up_to_date(
    noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        ran: ClassVar[list[tuple[str, ...]]] = []

        def run_install(self, *command: str, env: dict[str, str | None] | None = None) -> None:
            self.ran.append(command[1:])
            (tmp_path / ".nox" / "tools" / "bin").mkdir(parents=True, exist_ok=True)
            (tmp_path / ".nox" / "tools" / "bin" / "python").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(noxfile, "BIN", tmp_path / ".nox" / "tools" / "bin")
    tools = tmp_path / "lockfiles" / "tools.txt"
    tools.parent.mkdir()
    expected: tuple[tuple[str, list[str]], ...] = (
        ("first", ["venv", "pip"]),
        ("first", []),
        ("second", ["pip"]),
        ("second", []),
    )
    for text, commands in expected:
        tools.write_text(text)
        Session.ran.clear()
        noxfile.install_tools(Session())
        assert [command[0] for command in Session.ran] == commands
    assert noxfile.nox.options.default_venv_backend == "none"


class Version(NamedTuple):
    """A version of Python, as in sys.version_info."""

    major: int
    minor: int


def test_nox_on_an_older_python_uses_another_or_says_so(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert noxfile.find_python(noxfile.find_uv()) == sys.executable
    version = Version(3, 10)
    monkeypatch.setattr(
        noxfile, "sys", SimpleNamespace(version_info=version, executable="/opt/python3.10", stderr=sys.stderr, exit=sys.exit)
    )
    other = noxfile.find_python(noxfile.find_uv())
    command = [other, "-c", "import sys; print(sys.version_info >= (3, 11))"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "True\n"
    monkeypatch.setattr(noxfile, "OLDEST_PYTHON", (3, 99))
    with pytest.raises(SystemExit) as ended:
        noxfile.find_python(noxfile.find_uv())
    assert ended.value.code == 2
    said = "nox: expected Python 3.99 or later, found 3.10 (/opt/python3.10) and no other; install python3.99\n"
    assert capsys.readouterr().err == said


def test_command_on_an_older_python_says_so(root: Path) -> None:
    main = root / "src" / "smokehouse" / "__main__.py"
    ast.parse(main.read_text(), feature_version=(3, 8))
    code = (
        "import collections, runpy, sys; "
        "sys.version_info = collections.namedtuple('version', 'major minor')(3, 10); "
        f"runpy.run_path({str(main)!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"smokehouse: expected Python 3.11 or later, found 3.10 ({sys.executable}); start it with python3.11\n"
    )
