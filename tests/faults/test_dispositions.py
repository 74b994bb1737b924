"""A parent that ignores SIGCHLD hides every exit status: entry points reset it, and what cannot be read is a failure."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.programs.process import run

from . import complete_reports


def under(trap: str, root: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python module of this repository as the child of a shell with that trap."""
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    if path:
        environ["PATH"] = f"{path}:{environ['PATH']}"
    command = ["sh", "-c", f'{trap}; exec "$@"', "sh", sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("trap", ["true", "trap '' CHLD", "trap '' CHLD TERM HUP"])
def test_exit_status_of_a_program_counts_under_any_parent(root: Path, trap: str) -> None:
    # The smoke test refuses the option in a process of its own, before anything is installed.
    ended = under(trap, root, "smokehouse", "smoke", complete_reports.NAME, "--only", "nonsense")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "expected names of" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["smoke_tests", "smoke_tests.machine", "smokehouse_loader"])
def test_smoke_tests_reset_what_they_inherit(root: Path, module: str) -> None:
    code = (
        f"import signal, runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        f"except SystemExit: pass\n"
        f"print(signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)"
    )
    command = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", sys.executable, "-c", code]
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "True", ended.stderr


def test_a_status_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match="false: SIGCHLD is ignored, so that no exit status can be read"):
            run(["false"], deadline=10, environ=os.environ, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert run(["false"], deadline=10, environ=os.environ, cwd=tmp_path).code == 1


def test_a_program_that_is_not_cosign_verifies_nothing(
    root: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smokehouse.checkout import Checkout
    from smokehouse.proofs.attestation import statement
    from smokehouse.proofs.signing import Signer, sign
    from smokehouse.proofs.trust import judge

    signed = sign(statement(complete_reports.report(root), "tiny", complete_reports.DIGEST), Signer(keys / "other.key"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "cosign").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(foreign), prepend=":")
    trusted = Signer(keys / "ours.pub")
    assert judge(Checkout(root), complete_reports.locked(root), complete_reports.DIGEST, [signed], trusted).valid is False
