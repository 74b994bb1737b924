"""Programs end by their deadline, with every process that they started."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.programs import process
from smokehouse.programs.process import run


def ends(pid: int) -> bool:
    """Wait for the end of a process, which a signal that it was sent brings about in its own time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 30)[0])
    finally:
        os.close(descriptor)


def test_a_program_that_times_out_is_stopped_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    # Neither the shell nor its child ends on SIGTERM, and the child keeps the pipe open.
    script = f"trap '' TERM; sleep 1000 & echo $! > {note}; wait"
    with pytest.raises(UserError, match="sh timed out after 1 s and was stopped"):
        run(["/bin/sh", "-c", script], deadline=1, environ=os.environ, cwd=tmp_path)
    assert ends(int(note.read_text()))


def test_standard_output_and_error_are_separate(tmp_path: Path) -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ended = run([sys.executable, "-c", script], deadline=60, environ=os.environ, cwd=tmp_path)
    assert (ended.code, ended.stdout, ended.stderr) == (3, "out\n", "err\n")


def test_a_line_at_a_terminal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "is_terminal", lambda: True)
    script = "import sys; sys.stderr.write('10 %\\r20 %\\nerror: it is\\n  cause: this\\n')"
    ended = run([sys.executable, "-c", script], deadline=60, environ=os.environ, cwd=tmp_path, progress=True)
    assert ended.stderr == "10 %\n20 %\nerror: it is\n  cause: this\n"


# Its clock shows an hour more once its program has stopped it, so that nothing here waits for a deadline.
STOPPED = """
import os, sys, time
from pathlib import Path
real = time.monotonic
time.monotonic = lambda: real() + (3600 if os.path.exists("stopped") else 0)
from smokehouse.programs import process
process.is_terminal = lambda: sys.argv[1] == "terminal"
command = ["sh", "-c", "echo $$ > pid; touch stopped; kill -STOP $PPID; echo said >&2; exit 3"]
ended = process.run(command, deadline=60, environ=os.environ, cwd=Path.cwd(), progress=True)
print(ended.code, ended.stderr.strip())
"""


@pytest.mark.parametrize("output", ["terminal", "pipe"])
def test_a_program_that_ended_while_this_process_was_stopped_is_judged_by_its_end(
    output: str, root: Path, tmp_path: Path
) -> None:
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", STOPPED, output]
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert ends(int((tmp_path / "pid").read_text()))
        process.send_signal(signal.SIGCONT)
        said, wrong = process.communicate(timeout=60)
        assert said == "3 said\n", wrong
    finally:
        process.kill()
