"""Real faults: ranks that are killed and stopped at a given moment, a full disk, and invalid input."""

import contextlib
import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Ended, Smoke, Starter, wait_until_dead

# Seconds that a run has to end in after a fault, or after the deadline that a hang lets pass.
PATIENCE = 15.0


def strike(smoke: Smoke, pid: int, number: signal.Signals) -> Ended:
    """Send the signal, and wait for the run to end in time."""
    os.kill(pid, number)
    return smoke.finish(PATIENCE)


def assert_fatal(ended: Ended, message: str) -> None:
    """Check for exit code 1, one line that matches `message`, and a report of a failed run with the same line."""
    assert ended.code == 1
    assert re.fullmatch(rf"smoke: {message}\n", ended.stderr), ended.stderr
    report = ended.report
    assert report["verdict"] == "failed"
    assert f"smoke: {report['failure']}\n" == ended.stderr
    assert (ended.folder / "junit.xml").is_file()
    assert html.escape(report["failure"]) in (ended.folder / "report.html").read_text()
    assert not list(ended.folder.glob("work-*"))


# ranks that die


@pytest.mark.parametrize(
    ("stage", "job", "rank", "step", "number"),
    [
        (3, "zero3", 1, "load", signal.SIGKILL),
        (2, "zero2", 0, "train", signal.SIGTERM),
        (3, "zero3-fresh", 1, "resume", signal.SIGSEGV),
        (2, "plain", 0, "plain run", signal.SIGABRT),
    ],
)
def test_rank_that_dies(smoke: Starter, stage: int, job: str, rank: int, step: str, number: signal.Signals) -> None:
    running = smoke.start("--zero", str(stage))
    running.wait_for_step(job, rank, step)
    ended = strike(running, running.pid(job, rank), number)
    # The rank ran on before the signal arrived; its last message shows how far.
    reached = running.reached(job, rank)
    steps = running.steps(job)
    assert steps.index(reached) >= steps.index(step)
    place = f"zero-{stage} / {reached}" if job.startswith("zero") else reached
    sentence = rf"rank {rank} was killed by signal {number.value} \({number.name}\) in {place}"
    log = ended.folder / "logs" / job / f"rank{rank}.log"
    assert_fatal(ended, rf"{sentence}; log: {re.escape(str(log))}")
    assert log.is_file()
    entry = ended.found(reached, stage if job.startswith("zero") else None)
    assert entry["verdict"] == "failed"
    assert re.search(sentence, entry["ranks"][rank]["detail"])
    assert re.search(sentence, entry["detail"])


def test_rank_that_dies_before_its_first_message(smoke: Starter) -> None:
    """Kill the first rank as soon as it exists, when it may not have connected yet."""
    running = smoke.start("--zero", "2")
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    # Before it, the parent starts programs that look at the machine.
    running.wait_until((running.folder / "logs" / "plain").exists)
    first = running.wait_until(lambda: children.read_text().split()[:1])
    ended = strike(running, int(first[0]), signal.SIGKILL)
    assert_fatal(ended, r"rank 0 was killed by signal 9 \(SIGKILL\) in (start|checkpoint); log: \S+")


def test_launcher_that_dies(smoke: Starter) -> None:
    running = smoke.start("--zero", "2")
    running.wait_for_step("zero2", 1, "load")
    ended = strike(running, running.pid("zero2", None), signal.SIGKILL)
    log = re.escape(str(ended.folder / "logs" / "zero2" / "launcher.log"))
    assert_fatal(ended, rf"torchrun's agent for zero2 was lost: killed by signal 9 \(SIGKILL\); log: {log}")


STOPPING = """
import os, signal
from smoke_tests.ranks import processes

waits = os.fork()
if not waits:
    os.setsid()
    signal.pause()
waitpid, os.waitpid = os.waitpid, lambda target, options: (0, 0)
print(processes.stop(waits, 0.2))
os.waitpid = waitpid
print(processes.stop(waits, 10.0), processes.state(waits) == "")
"""


def test_process_that_does_not_die_holds_nothing_up(lasting: Starter) -> None:
    assert lasting.inside("-c", STOPPING).split() == ["False", "True", "True"]


# ranks that hang


def test_rank_that_is_stopped(smoke: Starter) -> None:
    """Only the deadline can notice; then the stopped rank and the one that waits for it are reported with their stacks."""
    timeout = 5
    running = smoke.start("--zero", "3", "--timeout", str(timeout))
    running.wait_for_step("zero3", 1, "train")
    os.kill(running.pid("zero3", 1), signal.SIGSTOP)
    ended = running.finish(timeout + PATIENCE)
    frame = r"(\S+\.py|<[^>]+>):\d+ in \S+"  # code need not come from a file: the chat template is compiled as <template>
    stack = rf"at {frame}( < {frame})*"
    waits, stops = (f"zero-3 / {running.reached('zero3', rank)} for [56] s, {stack}" for rank in (0, 1))
    logs = re.escape(str(ended.folder / "logs" / "zero3"))
    which = r"(; collective: [^;]+(; not arrived [^;]+)?)?"
    assert_fatal(ended, rf"rank 0 hangs in {waits}; rank 1 is stopped \(SIGSTOP\) in {stops}{which}; logs: {logs}")
    for rank in (0, 1):
        whole = (ended.folder / "logs" / "zero3" / f"rank{rank}.stack").read_text()
        assert re.search(r"smoke_tests/checks/\w+\.py\W.* in \w+$", whole, re.MULTILINE)


def test_agent_that_is_stopped(smoke: Starter) -> None:
    """Its ranks wait for nobody: what hangs is named, not who waits for it."""
    timeout = 20
    running = smoke.start("--zero", "2", "--timeout", str(timeout))
    running.wait_for_step("zero2", 1, "load")
    os.kill(running.pid("zero2", None), signal.SIGSTOP)
    os.kill(running.pid("zero2", 1), signal.SIGSTOP)
    ended = running.finish(timeout + PATIENCE)
    logs = re.escape(str(ended.folder / "logs" / "zero2"))
    assert_fatal(ended, rf"torchrun's agent for zero2 is stopped \(SIGSTOP\), so nobody tends its ranks; .*; logs: {logs}")


def test_rank_that_leaves(smoke: Starter) -> None:
    """Neither Ctrl-C in a rank nor an exit is a good end."""
    ended = smoke.run("--zero", "2", "--only", "train", sabotage=("leaves",))
    assert ended.code == 1
    assert "KeyboardInterrupt" in ended.found("train", 2)["ranks"][1]["detail"]
    assert "KeyboardInterrupt" in (ended.folder / "logs" / "zero2" / "rank1.log").read_text()


def test_rank_that_speaks_as_its_launcher(smoke: Starter) -> None:
    """It has no connection but its own two, and another is not that of a launcher."""
    ended = smoke.run("--zero", "2", "--only", "train", sabotage=("poses_as_launcher",))
    assert ended.code == 1
    detail = ended.found("train", 2)["ranks"][1]["detail"]
    assert re.search(r"rank channel: expected process \d+ as a launcher, found process \d+ ", detail), detail
    assert "connections of the run: 2\n" in (ended.folder / "logs" / "zero2" / "rank1.log").read_text()


def test_rank_that_writes_without_end(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", "--only", "train", sabotage=("chatters",))
    assert ended.code == 0, ended.stderr
    log = ended.folder / "logs" / "zero2" / "rank1.log"
    assert log.stat().st_size < 200 << 20
    assert "the last word" in log.read_text()


def test_run_that_is_continued_judges_what_waited(smoke: Starter) -> None:
    """While it was stopped (Ctrl-Z), its ranks went on; nothing of that is a hang."""
    running = smoke.start("--zero", "2", "--only", "train", "--timeout", "6")
    running.wait_for_step("zero2", 1, "load")
    os.kill(running.process.pid, signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(8)  # longer than the timeout: only the clock of the run can tell
    os.kill(running.process.pid, signal.SIGCONT)
    ended = running.finish()
    assert ended.code == 0, ended.stderr


def test_report_path_that_no_terminal_can_show(smoke: Starter) -> None:
    """A newline and other letters in it, on a terminal of ASCII, with a network interface that this machine lacks."""
    folder = smoke.folder / "a report\n\u0440"
    ended = smoke.run("--zero", "2", "--only", "versions", report=folder, PYTHONIOENCODING="ascii", GLOO_SOCKET_IFNAME="ib0")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.report["verdict"] == "passed"
    assert "report: " in ended.stdout


def test_ten_interrupts_are_one(smoke: Starter) -> None:
    running = smoke.start("--zero", "2")
    running.wait_for_step("zero2", 0, "load")
    for _ in range(10):
        os.kill(running.process.pid, signal.SIGINT)
    ended = running.finish(PATIENCE)
    assert ended.code == 1
    assert ended.report["failure"].startswith("interrupted by SIGINT with ")
    assert not list(ended.folder.glob("work-*"))


def test_rank_that_is_stopped_before_a_collective(smoke: Starter) -> None:
    """The one that hangs, and who has not arrived, is in the printed line, in the report and in the logs."""
    ended = smoke.run("--zero", "2", "--only", "train", "--timeout", "8", sabotage=("stops_itself",))
    collective = r"\w+ of float32\[\d+\], number \d+ of [^;]+: arrived rank 0; not arrived rank 1 \(last: number \d+, .+\)"
    place = r"in zero-2 / train for \d+ s, at [^;]+"
    waits = rf"rank 0 hangs {place}; rank 1 is stopped \(SIGSTOP\) {place}"
    assert_fatal(ended, rf"{waits}; collective: {collective}; logs: \S+")
    for rank in ended.found("train", 2)["ranks"]:
        assert re.search(rf"; collective: {collective}$", rank["detail"])
    entered = [(ended.folder / "logs" / "zero2" / f"rank{rank}.collectives").read_text().splitlines() for rank in (0, 1)]
    assert entered[0][-1].startswith("w ")
    assert [line[2:] for line in entered[0][:-1]] == [line[2:] for line in entered[1]]


def test_rank_that_skips_a_collective(smoke: Starter) -> None:
    """Both ranks hang, each in another collective."""
    ended = smoke.run("--zero", "2", "--only", "collectives", "--timeout", "10", sabotage=("skipped_collective",))
    differ = r"rank 0 entered all_reduce of bfloat16\[\d+\], rank 1 entered all_gather_into_tensor of bfloat16\[\d+\]"
    assert ended.code == 1
    assert re.search(rf"; collective: ranks run different collectives: as number \d+ of [^;]+ {differ}; logs: ", ended.stderr)


# the run itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_interrupted_run(smoke: Starter, number: signal.Signals) -> None:
    running = smoke.start("--zero", "2")
    running.wait_for_step("zero2", 0, "generate")
    ended = strike(running, running.process.pid, number)
    assert_fatal(ended, rf"interrupted by {number.name} with .*rank 0 in zero-2 / {running.reached('zero2', 0)}.*")


def test_second_run_on_the_same_report(smoke: Starter) -> None:
    """It is refused, and does not disturb the first."""
    first = smoke.start("--zero", "2")
    first.wait_until((first.folder / "logs").is_dir)
    said = refused_by_tools(smoke, report=first.folder)
    holder = f"process {first.process.pid} on {socket.gethostname()}"
    assert said == f"{first.folder}: in use by {holder}; wait for it or give another --report"
    assert (first.folder / "logs").is_dir()
    assert list(first.folder.glob("work-*"))


def test_interrupted_before_the_first_rank(smoke: Starter) -> None:
    running = smoke.start("--zero", "2")
    running.wait_until(lambda: "importing torch" in running.said())
    ended = strike(running, running.process.pid, signal.SIGINT)
    assert ended.code == 1
    assert ended.stderr == "smoke: interrupted before the first rank started\n"
    assert not list(ended.folder.glob("work-*"))


def test_killed_run_ends_its_ranks(smoke: Starter) -> None:
    """No process is left, though nothing can be reported; the next run deletes the work folder."""
    running = smoke.start("--zero", "2")
    running.wait_for_step("zero2", 0, "load")
    running.wait_for_step("zero2", 1, "load")
    ranks = running.living()
    assert len(ranks) >= 4  # itself, a launcher and two ranks
    running.process.kill()
    assert running.process.wait(PATIENCE) == -signal.SIGKILL
    wait_until_dead(ranks, 5.0)
    assert running.living() == []
    left, before = list(running.folder.glob("work-*")), running.pids()
    assert left
    again = smoke.start("--zero", "2", report=running.folder)
    again.wait_for(lambda e: e["event"] == "hello" and e["pid"] not in before)
    assert not set(left) & set(running.folder.glob("work-*"))


# the disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a file system of that many MiB."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(place)]
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if mounted.returncode:
            pytest.skip(f"requires the right to mount a file system: {mounted.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


def test_disk_that_is_too_small(smoke: Starter, disk: Callable[[int], Path]) -> None:
    report = disk(16) / "report"
    said = smoke.refused(report=report)
    assert re.fullmatch(
        rf"{report}: expected about [\d.]+ GiB of disk, found 0\.0 GiB free; give --report another folder", said
    )


def fill(file: Path) -> None:
    """Write to the file until its disk is full."""
    with file.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1):
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(size))
    assert os.statvfs(file).f_bavail == 0


def test_disk_that_fills_up(smoke: Starter, disk: Callable[[int], Path]) -> None:
    place = disk(700)
    running = smoke.start("--zero", "3", report=place / "report")
    running.wait_for_step("zero3", 0, "resume")
    fill(place / "ballast")
    ended = running.finish()
    assert ended.code == 1
    fix = "free disk space or give --report another folder"
    assert re.fullmatch(rf"smoke: {place}/report: disk is full; {fix}( \(.*\))?\n", ended.stderr), ended.stderr
    assert "Traceback" not in ended.stdout


# invalid input: refused before torch is imported, which the tools' Python does not have


def refused_by_tools(smoke: Starter, *options: str, report: Path | None = None) -> str:
    """Return the line with which the smoke tests refuse, run by a Python without torch."""
    command = [sys.executable, "-m", "smoke_tests", *smoke.arguments(report or smoke.folder / "none"), *options]
    ended = subprocess.run(command, cwd=smoke.root, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr.rstrip("\n")


def shard(tensors: dict[str, int]) -> bytes:
    """Return a safetensors file of byte tensors with that many elements each."""
    header, end = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with all that a checkpoint is checked for, and nothing else."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for tensor, name in files.items():
        (folder / name).write_bytes(shard({tensor: 100}))
    for name, content in {
        "config.json": {"model_type": "qwen2_5_vl"},
        "model.safetensors.index.json": {"metadata": {}, "weight_map": files},
        "tokenizer_config.json": {},
        "preprocessor_config.json": {},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4000000000\n"


def replaced(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Return a damage that replaces the content of the file `name`."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def cut(folder: Path) -> None:
    """Remove the last byte of the last shard."""
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])


def directory(folder: Path) -> None:
    """Replace the last shard by a directory, which not even root can read."""
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def outside(folder: Path) -> None:
    """Have the index list an existing file outside the checkpoint."""
    (folder.parent / "other.safetensors").write_bytes(shard({"b": 100}))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"b": "../other.safetensors"}}))


DAMAGES: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "a directory in place of a shard": (SHARD, "not found", directory),
    "no shard": (SHARD, "not found", lambda folder: (folder / SHARD).unlink()),
    "a shard cut short": (SHARD, r"expected \d+ bytes by its header, found \d+ \(1 missing\)", cut),
    "a shard with more behind it": (
        SHARD,
        r"expected \d+ bytes by its header, found \d+ \(1 too many\)",
        replaced(SHARD, shard({"b": 100}) + b"!"),
    ),
    "an empty shard": (SHARD, "truncated to 0 bytes, before its header", replaced(SHARD, "")),
    "a Git LFS pointer": (SHARD, "expected weights, found a Git LFS pointer", replaced(SHARD, POINTER)),
    "a web page": (SHARD, "expected weights, found a web page", replaced(SHARD, "<!DOCTYPE html>\n<html>404</html>\n")),
    "a header that is no JSON": (SHARD, "invalid header", replaced(SHARD, (9).to_bytes(8, "little") + b"{'a': 1}!")),
    "a header without end": (SHARD, "invalid header", replaced(SHARD, (10**5).to_bytes(8, "little") + b"[" * 10**5)),
    "another model": (
        "config.json",
        "model_type: expected 'qwen2_5_vl', found 'llama'",
        replaced("config.json", '{"model_type": "llama"}'),
    ),
    "a config that is no JSON": ("config.json", "invalid JSON", replaced("config.json", "{")),
    "a config that is a list": ("config.json", "expected a JSON object, found list", replaced("config.json", "[]")),
    "no config": ("config.json", "No such file or directory", lambda folder: (folder / "config.json").unlink()),
    "an index without weights": (INDEX, "weight_map is empty", replaced(INDEX, '{"weight_map": {}}')),
    "an index cut short": (INDEX, "invalid index: JSONDecodeError", replaced(INDEX, '{"weight_map": {"a"')),
    "an index that leads outside": (
        INDEX,
        r"the file '\.\./other\.safetensors', which is outside the checkpoint's directory",
        outside,
    ),
    "no tokenizer": (
        *("tokenizer_config.json", "No such file or directory"),
        lambda folder: (folder / "tokenizer_config.json").unlink(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint_that_is_damaged(smoke: Starter, checkpoint: Path, damage: str) -> None:
    name, what, spoil = DAMAGES[damage]
    spoil(checkpoint)
    options = ("--checkpoint", str(checkpoint))
    said = refused_by_tools(smoke, *options, "--validate")
    assert re.fullmatch(rf"{checkpoint / name}: .*{what}.*; \w.+", said), said
    assert refused_by_tools(smoke, *options) == said


def test_checkpoint_that_is_sound_is_let_through(smoke: Starter, checkpoint: Path) -> None:
    """So only the damage is refused above."""
    command = [sys.executable, "-m", "smoke_tests", *smoke.arguments(smoke.folder), "--checkpoint", str(checkpoint)]
    ended = subprocess.run([*command, "--validate"], cwd=smoke.root, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zero", "1"], r"smoke: argument --zero: '1' is an invalid list of ZeRO stages; give 2, 3 or 2,3; see --help"),
        (["--nproc", "0"], r"smoke: argument --nproc: '0' is invalid; give a number of 1 or more; see --help"),
        (["--timeout", "nan"], r"smoke: argument --timeout: 'nan' is invalid; give seconds between 1 and 86400; see --help"),
        (
            ["--port", "65536"],
            r"smoke: argument --port: '65536' is an invalid port; give 1 to 65535, or 0 for any free port; see --help",
        ),
        (["--zreo", "2"], r"smoke: unrecognized arguments: --zreo 2; see --help"),
        (["--environment", "a/b"], r"smoke: 'a/b' is an invalid environment name; give a name in environments/"),
        (["--stack", "/nowhere/stack.toml"], r"/nowhere/stack\.toml: No such file or directory; give --stack .*"),
        (
            ["--stack", "/dev/null"],
            r"/dev/null: expected model\.family, model\.class and tables of expectations, found others; .*",
        ),
        (["--lock", "/nowhere"], r"/nowhere: requirements\.txt not found; run: nox -s lock -- qwen2\.5-vl"),
        (
            ["--checkpoint", "/nowhere"],
            r"--checkpoint /nowhere: folder not found; give a folder, or a hub id of the form owner/name",
        ),
        (["--checkpoint", "a" * 300], r"smoke: a{300}: File name too long; \w.*"),
        (
            ["--report", "/proc/nowhere"],
            r"/proc/nowhere: No such file or directory; give --report a folder that can be written",
        ),
        (["--report", "/dev/null"], r"/dev/null: File exists; give --report a folder that can be written"),
    ],
)
def test_option_that_is_wrong(smoke: Starter, options: list[str], message: str) -> None:
    said = refused_by_tools(smoke, *options)
    assert re.fullmatch(message, said), said


def test_other_folder_is_left_alone(smoke: Starter) -> None:
    """A run deletes what an earlier run left in its report folder, and does not touch other folders."""
    folder = smoke.folder / "results"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "mine.txt").write_text("a year of work")
    said = refused_by_tools(smoke, "--report", str(folder))
    assert said.startswith(f"{folder}: ")
    assert (folder / "logs" / "mine.txt").read_text() == "a year of work"


# what only the environment can tell


def test_busy_port(smoke: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = smoke.refused("--port", str(port))
    where = rf"--port {port}: port {port} of 127\.0\.0\.1"
    assert re.fullmatch(rf"{where} is in use by another process; give --port 0 for any free port", said)


def test_more_ranks_than_the_memory_holds(smoke: Starter) -> None:
    said = smoke.refused("--nproc", "5000")
    found = re.fullmatch(
        r"--nproc 5000: training on 5000 ranks requires about ([\d.]+) GiB of memory \(([\d.]+) GiB each\), "
        r"found ([\d.]+) GiB free; give --nproc (\d+) or less",
        said,
    )
    assert found, said
    whole, each, free, most = map(float, found.groups())
    assert whole == pytest.approx(5000 * each, rel=0.1)
    assert free < whole
    assert most * each <= free * 1.1


def test_hub_id_that_cannot_be_fetched(smoke: Starter) -> None:
    began = time.monotonic()
    said = smoke.refused("--checkpoint", "nobody/nothing", HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=str(smoke.folder))
    assert re.fullmatch(
        r"--checkpoint nobody/nothing: download failed \(.+\); fetch it on a machine with network access .*",
        said,
    )
    assert time.monotonic() - began < 60


# A child starts a compiler, as it were, in a session of its own, says so, and ends.
ORPHANS = """
import os, subprocess, sys
from smoke_tests.ranks import processes
processes.adopt_orphans()
child = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)"
with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as started:
    orphan = int(started.stdout.readline())
assert os.path.exists(f"/proc/{orphan}")
assert processes.stop_children()
assert not os.path.exists(f"/proc/{orphan}")
"""


def test_orphans_in_sessions_of_their_own_are_ended(lasting: Starter) -> None:
    lasting.inside("-c", ORPHANS)
