"""The newcomer's path: README's commands as they are written there, in a clone, with an empty home."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

README = """\
# A project

    nox -s before

## Prove it on your machine

In a clone:

    pip install "nox[uv]" && nox -s smoke

Without one:

    pip install ./project.whl

And the tests:

    nox -s tests

## Three ways

    nox -s after
"""

# Installs programs that only say how they were started.
INSTALL_TOOLS = """\
#!/bin/sh
mkdir -p "$1/bin"
for name in nox pip; do
    printf '#!/bin/sh\\necho ran %s "$@"\\n' "$name" > "$1/bin/$name"
    chmod +x "$1/bin/$name"
done
"""


@dataclass(frozen=True)
class Newcomer:
    """A checkout whose .ci/newcomer is the one under test, and the folder of a newcomer."""

    checkout: Path
    folder: Path

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / ".ci" / "newcomer"), str(self.folder), *arguments],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def commit(self) -> None:
        for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
            subprocess.run(["git", *command], cwd=self.checkout, check=True, timeout=60)


@pytest.fixture
def newcomer(root: Path, tmp_path: Path) -> Newcomer:
    """A prepared newcomer; the tools are not installed from the lock, which would need an index."""
    made = Newcomer(tmp_path / "home of someone" / "checkout", tmp_path / "new")
    (made.checkout / ".ci").mkdir(parents=True)
    shutil.copy(root / ".ci" / "newcomer", made.checkout / ".ci")
    tools = made.checkout / ".ci" / "install-tools"
    tools.write_text(INSTALL_TOOLS)
    tools.chmod(0o755)
    (made.checkout / "README.md").write_text(README)
    (made.checkout.parent / "shared").mkdir()  # which no newcomer has
    made.commit()
    (made.checkout / "README.md").write_text(README.replace("smoke", "uncommitted"))
    ended = made.run("prepare")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "newcomer: uncommitted changes are left out\n"
    return made


def test_commands_are_those_of_the_readme(newcomer: Newcomer) -> None:
    first, second, third = (newcomer.run("readme", number) for number in "123")
    assert (first.returncode, first.stdout) == (0, "ran pip install nox[uv]\nran nox -s smoke\n")
    assert first.stderr == 'newcomer: pip install "nox[uv]" && nox -s smoke\n'
    assert (second.returncode, second.stdout) == (0, "ran nox -s tests\n")
    assert (third.returncode, third.stdout) == (2, "")
    assert "README.md: expected 3 commands with nox in its first section, found fewer" in third.stderr


def test_a_command_that_fails_fails_the_newcomer(newcomer: Newcomer) -> None:
    assert newcomer.run("run", "false; true").returncode == 1
    (newcomer.folder / "venv" / "bin" / "pip").write_text("#!/bin/sh\nexit 7\n")
    assert newcomer.run("readme", "1").returncode == 7


def test_nothing_of_the_caller_is_there(newcomer: Newcomer, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / ".config" / "uv").mkdir(parents=True)
    (mine / ".config" / "uv" / "uv.toml").touch()
    given = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/x", "SMOKEHOUSE_CHANNEL": "/x", "SMOKEHOUSE_HOME": "/x", "NOXSESSION": "x"}
    script = "env; echo home: $(ls -A ~); echo beside: $(ls ..); pwd"
    ended = newcomer.run(
        "run", script, HOME=str(mine), XDG_CONFIG_HOME="", XDG_CACHE_HOME="", UV_CACHE_DIR="", PIP_TIMEOUT="9", **given
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-3:] == ["home:", "beside: clone home venv", str(newcomer.folder / "clone")]
    environ = dict(line.split("=", 1) for line in lines[:-3])
    assert environ["HOME"] == str(newcomer.folder / "home")
    assert environ["VIRTUAL_ENV"] == str(newcomer.folder / "venv")
    assert environ["PATH"].split(":")[0] == str(newcomer.folder / "venv" / "bin")
    assert {*environ["PATH"].split(":")[1:]} <= {
        f"{usr}/{place}" for usr in ("", "/usr", "/usr/local") for place in ("bin", "sbin")
    }
    assert not {"PYTHONPATH", "SMOKEHOUSE_CHANNEL", "SMOKEHOUSE_HOME", "NOXSESSION"} & {*environ}
    # Of a mirror, and for time.
    assert environ["PIP_TIMEOUT"] == "9"
    assert environ["UV_CONFIG_FILE"] == str(mine / ".config" / "uv" / "uv.toml")
    assert environ["UV_CACHE_DIR"] == str(mine / ".cache" / "uv")


def test_the_readme_has_two_commands_and_ci_runs_both(root: Path) -> None:
    section = re.split(r"^## ", (root / "README.md").read_text(), flags=re.MULTILINE)[1]
    assert section.startswith("Prove it on your machine\n")
    commands = re.findall(r"^    (.*nox -s .*)$", section, re.MULTILINE)
    assert commands == ['pip install "nox[uv]" && nox -s smoke', "nox -s tests"]
    run = (root / ".ci" / "run").read_text()
    assert "newcomer readme 1" in run
    assert "newcomer readme 2" in run
    assert ".ci/newcomer build/newcomer readme 1" in (root / ".github" / "workflows" / "checks.yml").read_text()
