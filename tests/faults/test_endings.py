"""How processes end: lost output, signals, a parent that is gone, logs without bound. What it takes ranks for: tests/smoke."""

import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_tests import endings
from smoke_tests.machine import host
from smoke_tests.ranks import logs
from smokehouse.cli.main import _remedy

RECORD = Callable[[str, object], None]
SOON = 30.0  # seconds
# A program of ours that prints, decides, writes its report and returns its verdict.
VERDICT = """
import atexit, sys
from smoke_tests import endings
from smoke_tests.machine.output import keep_output_harmless
keep_output_harmless()
report = open(sys.argv[1], "w")
assert report.fileno() > 2
print("\\u2713 na\\xefve \\udcff", flush=True)
print("x" * 100_000)
print("said", file=sys.stderr)
class Torn:
    def __del__(self, open=open, place=sys.argv[1]):
        open(place, "w")  # what tearing down would do to the report
torn = Torn()
report.write("comp")
atexit.register(lambda: (report.write("lete"), report.close()))
endings.leave(1)
"""
# One that cleans up, and says when it can be killed.
CLEANS = """
import os, pathlib, sys, time
from smoke_tests import endings
endings.end_in_order()
place = pathlib.Path(sys.argv[1])
place.mkdir()
try:
    os.write(3, b"%d\\n" % os.getpid())
    for _ in range(600):  # a signal just before a long sleep would be seen after it
        time.sleep(0.1)
finally:
    place.rmdir()
"""


def environ(**more: str) -> dict[str, str]:
    """Return the variables of a program that imports what is tested."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


@pytest.mark.parametrize("how", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "| true", ""])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_lost_output_changes_no_verdict(how: str, encoding: str, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "output")
    command = f'set -o pipefail; "$1" -c "$2" "$3" {how}'
    program = ["bash", "-c", command, "bash", sys.executable, VERDICT, str(tmp_path / "report")]
    variables = environ(PYTHONIOENCODING=encoding)
    ended = subprocess.run(program, cwd=root, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, timeout=SOON)
    assert ended.returncode == 1, ended.stderr
    assert (tmp_path / "report").read_text() == "complete"
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr


# Commands that print a line, and go on until they are told to end; and what reads them.
SPEAKS = """
import os, sys
say = print
def speak():
    say("a line")
    os.read(3, 1)
    for number in range(100_000):
        say(f"more {number}")
"""
SPEAKERS = {
    "builder": """
from smokehouse.cli.main import app, main
app.command()(speak)
sys.argv[1:] = ["speak"]
sys.exit(main())
""",
    "inside": """
from smoke_tests import endings
from smoke_tests.machine.output import keep_output_harmless
keep_output_harmless()
speak()
endings.leave(0)
""",
    "machine": """
from smoke_tests.machine.output import keep_output_harmless
keep_output_harmless()
speak()
""",
    "loader": """
from smokehouse_loader.__main__ import _say as say
speak()
""",
}


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("read_on", [True, False])
def test_commands_are_followed_through_a_pipe(root: Path, speaker: str, read_on: bool, record_property: RECORD) -> None:
    """A line is read while the command still runs; it ends as well where nobody reads on."""
    record_property("fault", "output")
    ended, end = os.pipe()
    program = ["bash", "-c", f'exec 3<&{ended}; exec "$1" -c "$2"', "bash", sys.executable, SPEAKS + SPEAKERS[speaker]]
    variables = environ() | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(program, cwd=root, env=variables, pass_fds=[ended], stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout
            assert process.stderr
            assert select.select([process.stdout], [], [], SOON)[0], "nothing to read while it runs"
            assert process.stdout.readline() == b"a line\n"
            os.write(end, b"x")
            if read_on:
                assert process.stdout.read().endswith(b"more 99999\n")
            process.stdout.close()
            assert (process.wait(SOON), process.stderr.read()) == (0, b"")
        finally:
            process.kill()
            os.close(end)
            os.close(ended)


# Programs that print more than one line.
PROGRAMS = {
    "loader": '"$1" -m smokehouse_loader failures',
    "machine": '"$1" -m smoke_tests.machine --device cpu',
    "describe": '"$1" "$2"',
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("how", ["| head -n 1 >/dev/null", "| true", ">&-"])
def test_programs_whose_output_is_not_read(program: str, how: str, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    """Their exit code is what they found, or the signal of a pipe that nobody reads, and nothing else is said."""
    record_property("fault", "output")
    about = {"environment": "x", "flavour": "runtime", "stack": {"torch": "2"}, "lock": "0", "ops": "none"}
    (tmp_path / "about.json").write_text(json.dumps(about))
    script = (root / "docker" / "inside" / "describe").read_text().replace("/opt/smokehouse/about", f"{tmp_path}/about")
    (tmp_path / "describe").write_text(script)
    command = ["bash", "-c", f"set -o pipefail; {PROGRAMS[program]} {how}", "bash", sys.executable, str(tmp_path / "describe")]
    variables = environ() | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=SOON)
    codes = {"loader": (0,), "machine": (0, 1), "describe": (0, 128 + signal.SIGPIPE)}
    assert ended.stderr == b""
    assert ended.returncode in codes[program]


@pytest.mark.parametrize("how", [">&-", "2>&-", "<&- >&- 2>&-", ""])
def test_commands_without_streams(how: str, root: Path, record_property: RECORD) -> None:
    record_property("fault", "output")
    program = ["bash", "-c", f'"$1" -m smokehouse show qwen2.5-vl {how}', "bash", sys.executable]
    variables = environ(PYTHONIOENCODING="ascii")
    ended = subprocess.run(program, cwd=root, env=variables, capture_output=True, timeout=SOON)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.isascii()


def test_output_of_a_command_on_a_full_disk(root: Path, record_property: RECORD) -> None:
    """What a command prints is its result, so losing it is a failure, in one sentence."""
    record_property("fault", "output")
    program = ["bash", "-c", '"$1" -m smokehouse list >/dev/full', "bash", sys.executable]
    ended = subprocess.run(program, cwd=root, env=environ(), stderr=subprocess.PIPE, timeout=SOON)
    assert ended.returncode == 2
    assert ended.stderr == b"smokehouse: standard output: No space left on device; free disk space\n"


def test_an_output_that_is_a_device_is_written_to(root: Path, tmp_path: Path, record_property: RECORD) -> None:
    """Root could replace it by a file, for all programs. Links stand for the devices: no failure of this test does so."""
    record_property("fault", "output")
    printed, full = tmp_path / "printed", tmp_path / "full"
    printed.symlink_to("/proc/self/fd/1")
    full.symlink_to("/dev/full")
    command = [sys.executable, "-m", "smokehouse", "sbom", "qwen2.5-vl", "--output"]
    ended = subprocess.run([*command, printed], cwd=root, env=environ(), capture_output=True, timeout=SOON, check=True)
    assert json.loads(ended.stdout)["spdxVersion"] == "SPDX-2.3"
    ended = subprocess.run([*command, full], cwd=root, env=environ(), capture_output=True, timeout=SOON)
    assert (ended.returncode, b"free disk space" in ended.stderr) == (2, True), ended.stderr
    assert (printed.is_symlink(), full.is_symlink()) == (True, True)


@pytest.mark.parametrize("output", ["", "folder"])
def test_an_output_that_is_a_folder_is_refused(output: str, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "output")
    (tmp_path / "folder").mkdir()
    variables = environ() | {"PYTHONPATH": str(root / "src"), "SMOKEHOUSE_HOME": str(tmp_path / "home")}
    for name in ("environments", "lockfiles"):
        (tmp_path / name).symlink_to(root / name)
    command = [sys.executable, "-m", "smokehouse", "sbom", "qwen2.5-vl", "--output", output]
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=SOON)
    said = f"smokehouse: {Path(output)}: Is a directory; specify a file"
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, said)


def cleaner(place: Path, prefix: tuple[str, ...] = ()) -> tuple["subprocess.Popen[bytes]", int]:
    """Start a program that cleans up `place`; return it, or what started it, and its process ID once it runs."""
    reading, writing = os.pipe()
    command = [*prefix, sys.executable, "-c", CLEANS, str(place)]
    shell = ["bash", "-c", f'exec 3>&{writing} {writing}>&-; "$@" & wait', "bash", *command]
    started = subprocess.Popen(shell if prefix else ["bash", "-c", f'exec 3>&{writing} "$@"', "bash", *command], env=environ(),
                               pass_fds=[writing], start_new_session=True)  # fmt: skip
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return started, int(pipe.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_signals_leave_nothing_behind(number: signal.Signals, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "signal")
    started, process = cleaner(tmp_path / "work")
    os.kill(process, number)
    started.wait(SOON)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("ignored", [False, True])
def test_killed_parent(ignored: bool, tmp_path: Path, record_property: RECORD) -> None:
    """The kernel ends what a killed shell or nox started, in order; nohup prevents that."""
    record_property("fault", "parent")
    started, process = cleaner(tmp_path / "work", ("nohup",) if ignored else ("env",))
    watched = os.pidfd_open(process)
    try:
        started.kill()
        started.wait(SOON)
        ended = wait_for(watched, 1.0 if ignored else SOON)
        assert ended != ignored
        assert (tmp_path / "work").exists() == ignored
    finally:
        if ignored:
            os.kill(process, signal.SIGTERM)
            wait_for(watched, SOON)
        os.close(watched)


def wait_for(process: int, seconds: float) -> bool:
    """Return whether a process, given by its descriptor, ends in time."""
    return bool(select.select([process], [], [], seconds)[0])


# Limits its memory to what it has and 4 MB, less than the stack of a thread, before it runs a command.
LIMITED = """
import resource, sys, threading
import smokehouse.cli.main
from smoke_tests import __main__ as inside, options

def fails(*_arguments, **_options):
    threading.Thread(target=print).start() if sys.argv[2] == "thread" else bytearray(1 << 30)

builder = sys.modules["smokehouse.cli.main"]
builder.app, inside.read = fails, fails
threading.stack_size(64 << 20)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 20),) * 2)
sys.exit(builder.main() if sys.argv[1] == "builder" else inside.main([]))
"""


@pytest.mark.parametrize("which", ["builder", "inside"])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("memory", "out of memory; free memory, or raise its limit (ulimit -v)"),
        ("thread", "can't start new thread; free memory, or raise the limits of processes and memory (ulimit -u, ulimit -v)"),
    ],
)
def test_limits_of_memory_end_in_a_sentence(which: str, what: str, says: str, root: Path, record_property: RECORD) -> None:
    record_property("fault", "limit")
    variables = environ() | {"PYTHONPATH": f"{root}:{environ()['PYTHONPATH']}"}
    program = [sys.executable, "-c", LIMITED, which, what]
    ended = subprocess.run(program, cwd=root, env=variables, capture_output=True, text=True, timeout=SOON)
    assert (ended.returncode, ended.stderr) == (2, f"{'smokehouse' if which == 'builder' else 'smoke'}: {says}\n")


def test_a_folder_that_was_removed(root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    (tmp_path / "gone").mkdir()
    program = [
        "bash",
        "-c",
        'cd "$1" && rmdir "$1" && exec "$2" -m smokehouse list',
        "bash",
        str(tmp_path / "gone"),
        sys.executable,
    ]
    variables = environ() | {"PYTHONPATH": str(root / "src")}
    ended = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=SOON)
    expected = "smokehouse: the current folder no longer exists; change to one that does (cd)\n"
    assert (ended.returncode, ended.stderr) == (2, expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.EACCES, errno.EPIPE, errno.EIO])
def test_remedies_are_about_their_errors(number: int, record_property: RECORD) -> None:
    record_property("fault", "remedy")
    broken = OSError(number, os.strerror(number))
    expected = {
        errno.ENOSPC: "free disk space",
        errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.EACCES: "fix permissions",
    }.get(number, "fix it and run it again")
    assert endings.remedy(broken) == _remedy(broken) == expected


def test_logs_are_bounded_and_keep_their_ends(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "log")
    (tmp_path / "zero3").mkdir()
    log = tmp_path / "zero3" / "rank0.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(200):
            writer.write(b"%07d\n" % number * 1000)
            logs.trim(tmp_path, largest=100_000, kept=8_000)
            assert log.stat().st_size <= 108_100
        writer.write(b"the end\n")
    lines = log.read_text().splitlines()
    assert lines[-1] == "the end"
    assert lines[-1001:-1] == ["0000199"] * 1000
    assert lines[0].endswith("bytes before this were dropped]")
    assert "\0" not in log.read_text()


def test_small_logs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "zero3").mkdir()
    (tmp_path / "zero3" / "rank0.log").write_text("all of it")
    logs.trim(tmp_path, largest=100, kept=10)
    assert (tmp_path / "zero3" / "rank0.log").read_text() == "all of it"


def test_machine_without_proc(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "machine")
    assert str(host.processes(tmp_path)) == (
        f"{tmp_path}: not mounted, so that no process can be looked at; run mount -t proc proc {tmp_path}"
    )
    assert host.processes().level == "ok"
