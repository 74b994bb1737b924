"""Commands in an installed environment, and what tells the user where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from virtualenv.seed.wheels.embed import get_embed_wheel

from ..conftest import Index, TestCheckout

REPORT = "import alpha, json, os, sys; print(json.dumps([alpha.__file__, sys.prefix, sys.path, dict(os.environ)]))"


@pytest.fixture
def installed(checkout: TestCheckout) -> TestCheckout:
    checkout.lock()
    ended = checkout.run("smoke", "tiny")
    assert ended.returncode == 0, ended.stderr
    return checkout


def test_a_command_runs_in_the_environment_and_nothing_leaks_into_it(installed: TestCheckout) -> None:
    foreign = {"PYTHONHOME": "", "CONDA_PREFIX": "/elsewhere", "PATH": f"/elsewhere/bin:{os.environ['PATH']}"}
    ended = installed.run("run", "tiny", "--", "python", "-c", REPORT, **foreign, SMOKEHOUSE_STARTED_BY="nox")
    assert ended.returncode == 0, ended.stderr
    imported, prefix, path, environ = json.loads(ended.stdout)
    assert prefix == environ["VIRTUAL_ENV"] == str(installed.installed)
    assert Path(imported).is_relative_to(installed.installed)
    assert not {"PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX", "SMOKEHOUSE_STARTED_BY"} & {*environ}
    assert not any(entry.endswith("/src") for entry in path)
    assert environ["PATH"].split(":")[0] == str(installed.installed / "bin")
    assert "/elsewhere/bin" not in environ["PATH"].split(":")
    assert environ["UV_CONSTRAINT"] == environ["PIP_CONSTRAINT"] == (installed.installed / "constraints.txt").as_uri()


@pytest.mark.parametrize("dashes", [["--"], []])
def test_the_exit_code_is_that_of_the_command(installed: TestCheckout, dashes: list[str]) -> None:
    ended = installed.run("run", "tiny", *dashes, "python", "-c", "raise SystemExit(7)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "", "")


def test_a_command_that_is_not_found(installed: TestCheckout) -> None:
    where = f"{installed.installed}/bin or PATH"
    assert installed.refused("run", "tiny", "--", "no-such-program") == (
        f"smokehouse: no-such-program: command not found in {where}; check its name"
    )
    assert "run: expected a command, found none" in installed.refused("run", "tiny", "--")


def test_an_environment_that_is_not_installed(checkout: TestCheckout) -> None:
    checkout.lock()
    for environ, smoke, install, run in (
        ({}, "smokehouse smoke tiny", "smokehouse install tiny PREFIX", "smokehouse run --prefix PREFIX tiny --"),
        (
            {"SMOKEHOUSE_STARTED_BY": "nox"},
            "nox -s smoke -- tiny",
            "nox -s install -- tiny PREFIX",
            "nox -s run -- --prefix PREFIX tiny --",
        ),
    ):
        message = checkout.refused("run", "tiny", "--", "python", "a b.py", **environ)
        assert message == f"smokehouse: tiny: not installed; run {smoke}, or {install} and {run} python 'a b.py'"


def test_an_installation_of_an_older_lock_is_used_with_a_warning(installed: TestCheckout) -> None:
    installed.edit(installed.environment, "      - beta\n", "")
    installed.lock()
    ended = installed.run("run", "tiny", "--", "python", "-c", "import beta")
    assert ended.returncode == 0
    assert ended.stderr == (
        f"smokehouse: {installed.installed}: installed from an older lock; run smokehouse smoke tiny to bring it up to date\n"
    )


def test_a_prefix_says_how_it_is_used(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    prefix = tmp_path / "my envs" / "tiny"
    ended = checkout.run("install", "tiny", str(prefix))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{prefix}/bin/python\n"
    assert ended.stderr.splitlines()[-1] == (
        f"smokehouse: To use it: source '{prefix}/bin/activate', or smokehouse run --prefix '{prefix}' tiny -- COMMAND"
    )
    ran = checkout.run("run", "--prefix", str(prefix), "tiny", "--", "alpha")
    assert (ran.returncode, ran.stdout) == (0, "hello\n"), ran.stderr
    assert f"{tmp_path}: expected an installation of tiny" in checkout.refused("run", "--prefix", str(tmp_path), "tiny", "x")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_prefix_can_be_activated_and_deactivated(checkout: TestCheckout, tmp_path: Path, shell: str) -> None:
    checkout.lock()
    prefix = tmp_path / "my envs" / "tiny"
    assert checkout.run("install", "tiny", str(prefix)).returncode == 0
    script = f". '{prefix}/bin/activate'; command -v alpha; echo $VIRTUAL_ENV; deactivate; command -v alpha; echo \"$PATH\""
    environ = {"PATH": "/usr/bin:/bin"}
    ended = subprocess.run([shell, "-c", script], env=environ, capture_output=True, text=True, timeout=30)
    assert ended.stdout.splitlines() == [f"{prefix}/bin/alpha", str(prefix), "/usr/bin:/bin"]
    assert ended.stderr == ""


_PRINTED = "env | grep -E '^(PATH|PS1|PYTHONHOME|VIRTUAL_ENV|CONDA_PREFIX|UV_CONSTRAINT|PIP_CONSTRAINT|_SMOKE)' | sort; echo -"


@pytest.mark.parametrize("kind", ["prefix", "smoke"])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_activation_sets_the_constraints_and_deactivation_puts_everything_back(
    checkout: TestCheckout, tmp_path: Path, kind: str, shell: str
) -> None:
    checkout.lock()
    folder = tmp_path / "my envs" / "tiny" if kind == "prefix" else checkout.installed
    arguments = ("install", "tiny", str(folder)) if kind == "prefix" else ("smoke", "tiny")
    assert checkout.run(*arguments).returncode == 0
    activate = f". '{folder}/bin/activate'"
    # bash that is not interactive removes PS1 from its environment.
    prompt = '[ -z "${PROMPT-}" ] || export PS1="$PROMPT"'
    script = f"set -eu; {prompt}; {_PRINTED}; {activate}; {_PRINTED}; {activate}; deactivate; {_PRINTED}"
    for others in ({}, {"UV_CONSTRAINT": "/mine.txt", "PIP_CONSTRAINT": "/mine.txt", "PYTHONHOME": "/usr", "PROMPT": "> "}):
        environ = {"PATH": "/usr/bin:/bin", **others}
        ended = subprocess.run([shell, "-c", script], env=environ, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, ended.stderr
        before, active, after, _ = ended.stdout.split("-\n")
        assert before == after
        constraints = (folder / "constraints.txt").as_uri()
        assert f"UV_CONSTRAINT={constraints}\n" in active
        assert f"PIP_CONSTRAINT={constraints}\n" in active
        assert "PYTHONHOME" not in active
        assert ("PS1=(tiny) > \n" in active) == ("PROMPT" in others)


def test_pip_and_uv_obey_the_constraints_of_an_environment(
    checkout: TestCheckout, index: Index, tmp_path: Path, uv_cache: Path
) -> None:
    """pip and uv split the variables at spaces, which the path of this prefix has."""
    checkout.lock()
    prefix = tmp_path / "my envs" / "tiny"
    assert checkout.run("install", "tiny", str(prefix)).returncode == 0
    index.add("gamma", "1.6")
    environ = {name: text for name, text in checkout.environ.items() if not name.startswith("PYTHON")}
    environ |= {"PIP_INDEX_URL": checkout.environ["UV_DEFAULT_INDEX"], "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    uv, pip = Path(sys.executable).with_name("uv"), get_embed_wheel("pip", "3.11").path
    for command in (
        f"'{uv}' pip install --dry-run --python '{sys.executable}' --target site",
        f"'{sys.executable}' '{pip}/pip' install --dry-run --target site",
    ):
        for requirement, code in (("gamma", 0), ("gamma==1.6", 1)):
            script = f". '{prefix}/bin/activate' && {command} {requirement}"
            ended = subprocess.run(
                ["bash", "-c", script], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert ended.returncode == code, ended.stderr


def test_the_smoke_test_says_at_its_end_where_the_environment_is(checkout: TestCheckout) -> None:
    main = checkout.root / "smoke_tests" / "__main__.py"
    main.write_text('import os, sys\nif "--validate" not in sys.argv: print(os.environ["SMOKEHOUSE_HINT"])\n')
    checkout.lock()
    expected = f"To use it: source {checkout.installed}/bin/activate, or smokehouse run tiny -- COMMAND\n"
    assert checkout.run("smoke", "tiny").stdout == expected
