"""A supervisor with two ranks, one of which breaks the protocol: hostile_ranks FOLDER; prints a JSON object for each case.

It is a program because a supervisor ends all children of its process.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from smoke_tests.legs import Leg
from smoke_tests.outcome import Outcome, passed
from smoke_tests.plan import Job, Step
from smoke_tests.ranks import channel, logs, processes, supervisor, transport
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Begin, Bye, End, Hello
from smoke_tests.ranks.progress import RankProgress, RunningJob
from smoke_tests.workspace import Workspace

NAME, STEPS = "train", ("load", "train", "save")
DEADLINE = 20.0
Say = Callable[[socket.socket], None]


def line(message: channel.Message) -> bytes:
    """Return a message as a good rank sends it."""
    return channel.encode(message, 1.0)


def hello(rank: int | None = 1, job: str = NAME, *, stacks: bool = False, pid: int = 0) -> bytes:
    """Return the hello of this process."""
    return line(Hello(job, rank, pid or os.getpid(), STEPS, stacks))


def step(number: int) -> bytes:
    """Return a whole step."""
    return line(Begin(number)) + line(End(number, 1.0, 1.0, passed("well")))


def raw(**fields: object) -> bytes:
    """Return a message of any content."""
    return json.dumps({"time": 1.0, **fields}).encode() + b"\n"


def ended(**fields: object) -> bytes:
    """Return the end of step 0 with other fields."""
    usual = {"step": 0, "seconds": 1.0, "cpu_seconds": 1.0, "verdict": "passed", "detail": "", "data": {}}
    return line(Begin(0)) + raw(event="end", **{**usual, **fields})


def step_with(number: int, detail: str) -> bytes:
    """Return a whole step with a long detail."""
    return line(Begin(number)) + line(End(number, 1.0, 1.0, passed(detail)))


def cases() -> dict[str, list[bytes]]:
    """Return what the second rank sends after its hello, by name."""
    huge, deep = b"9" * 5000, b"[" * 100_000
    found: dict[str, list[bytes]] = {
        "a step begun twice": [line(Begin(0)) * 2],
        "begins for ever": [line(Begin(0)) * 100] * 50,
        "an end without a beginning": [line(End(0, 1.0, 1.0, passed("")))],
        "an end twice": [step(0) + line(End(0, 1.0, 1.0, passed("")))],
        "a later step": [line(Begin(1))],
        "a step too many": [step(0) + step(1) + step(2) + line(Begin(3))],
        "an earlier step": [step(0) + step(1) + step(0)],
        "hello again": [hello()],
        "hello of another": [hello(0)],
        "text": [b"GET / HTTP/1.1\r\n\r\n"],
        "bytes": [bytes(range(256)) * 4 + b"\n"],
        "an empty line": [b"\n"],
        "empty lines": [b"\n" * 100_000],
        "a line without end": [b"x" * 65536] * 100,
        "a message too long": [raw(event="fatal", error="x" * (5 << 20))],
        "the exit of another": [raw(event="exit", pid=1, code=0)],
        "too many bytes": [step_with(number, "x" * (3 << 20)) for number in range(len(STEPS))],
        "deep": [deep + b"\n"],
        "deep in a message": [b'{"event": "end", "time": 1, "data": {"a": ' + deep + b"\n"],
        "a long number": [b'{"event": "begin", "time": 1, "step": ' + huge + b"}\n"],
        "a long time": [b'{"event": "bye", "time": ' + b"9" * 400 + b"}\n"],
        "another event": [raw(event="surprise")],
        "an agent's message": [raw(event="ended", job=NAME, whole=True)],
        "a launcher's message for a step": [raw(event="left", job=NAME, code=0)],
    }
    values = {"nothing": None, "a text": "1", "a list": [1], "infinity": float("inf"), "no number": float("nan")}
    for name, value in values.items():
        for field in ("step", "seconds", "cpu_seconds", "verdict"):
            found[f"{name} as {field}"] = [ended(**{field: value})]
    for name, value in (("1e300", 1e300), ("-1", -1), ("10**400", 10**400), ("true", True)):
        found[f"{name} as seconds"] = [ended(seconds=value)]
    found["half a surrogate pair as detail"] = [ended(detail="\ud800")]
    found["half a surrogate pair in data"] = [ended(data={"a": ["\udfff"]})]
    found["data that is a list"] = [ended(data=[])]
    found["an outcome that is only observed"] = [ended(verdict="observed", detail="failed, in fact")]
    found["a known issue of which nothing is known"] = [ended(verdict="known-issue")]
    found["an unknown field"] = [ended(more=1)]
    return found


class Nodes:
    """Where the ranks are: in processes of this program, which no launcher tends."""

    number, host = 0, "here"

    def start(self, brief: Brief) -> None:
        """Do nothing."""

    def launcher(self, job: str) -> int | None:
        """Return this process, whose children the ranks are."""
        return os.getpid()

    def exit_code(self, job: str) -> int | None:
        """Return None: nothing ends here."""

    def look(self, job: str, pids: Sequence[int]) -> Mapping[str, str]:
        """Return no states."""
        return {}

    def request_stacks(self, job: str, pids: Sequence[int]) -> None:
        """Do nothing."""

    def stop(self, job: str) -> bool:
        """Return that nothing is left."""
        return True


def good(address: str) -> None:
    """Be the first rank."""
    connection = transport.connect(address)
    connection.sendall(hello(0) + b"".join(step(number) for number in range(len(STEPS))) + line(Bye()))
    connection.recv(1)


def bad(address: str, parts: list[bytes]) -> None:
    """Be the second rank, which sends `parts` as long as anybody listens."""
    connection = transport.connect(address)
    with suppress(OSError):
        connection.sendall(hello())
        for part in parts:
            connection.sendall(part)
        connection.recv(1)


def flood_of_stacks(address: str) -> None:
    """Be the second rank, whose connection for stacks has no end."""
    connection, stacks = transport.connect(address), transport.connect(address)
    with suppress(OSError):
        connection.sendall(hello())
        stacks.sendall(hello(stacks=True))
        for _ in range(1000):
            stacks.sendall(b"File x, line 1\n" * 1000)
    connection.recv(1)


def strangers(address: str) -> None:
    """Be the second rank, a good one, after a thousand connections that say nothing or something else."""
    with suppress(OSError):
        for number in range(400):
            other = transport.connect(address)
            with suppress(OSError):
                other.sendall((b"", b"x\n", hello(1, "no such job"), hello(pid=1))[number % 4])
            globals().setdefault("_kept", []).append(other)
    good_one = transport.connect(address)
    good_one.sendall(hello() + b"".join(step(number) for number in range(len(STEPS))) + line(Bye()))
    good_one.recv(1)


def impostor(parts: Sequence[bytes], *, of_child: bool = False) -> Callable[[str], None]:
    """Be the second rank, which opens one more connection, itself or in a child, and says these there."""

    def say(address: str) -> None:
        connection = transport.connect(address)
        connection.sendall(hello())
        if of_child and os.fork():
            connection.recv(1)
            return
        other = transport.connect(address)
        with suppress(OSError):
            for part in parts:
                other.sendall(part.replace(b'"pid": 0', b'"pid": %d' % os.getpid()))
            other.recv(1)
        connection.recv(1)

    return say


def impostors() -> dict[str, Callable[[str], None]]:
    """Return what a rank does to be taken for another, by name."""
    said = {
        "a launcher": [unknown(None), raw(event="exit", pid=os.getpid(), code=0)],
        "another rank": [unknown(0), step(0)],
        "another rank that hangs": [unknown(0, stacks=True), b"File x, line 1\n"],
    }
    found = {f"{name} in a child": impostor(parts, of_child=True) for name, parts in said.items()}
    found["itself in a child"] = impostor([unknown(1), step(0)], of_child=True)
    return found | {name: impostor(parts) for name, parts in said.items()}


def unknown(rank: int | None, *, stacks: bool = False) -> bytes:
    """Return the hello of a process that is not known yet."""
    return line(Hello(NAME, rank, 0, STEPS, stacks))


def inherited(folder: Path) -> list[str]:
    """Return the sockets and the log of a supervisor that a launcher has which it starts, with ranks that are connected."""
    folder.mkdir()
    leg = Leg("gloo", 2)
    brief = Brief(Job(NAME, (), leg=leg), "", "cpu", "fp32", DEADLINE, 0, folder, Workspace(folder), folder, None, {})

    def entry(_: Brief) -> None:
        mine = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if int(file.name) > 2 and file.is_symlink()]
        (folder / "open").write_text(json.dumps([name for name in mine if re.search("socket|eventpoll|events", name)]))

    def forget(found: supervisor.Supervisor, connection: socket.socket) -> None:
        found._forget()
        transport.close(connection)  # of this program, which is both ends

    with supervisor.Supervisor(brief, "fork", lambda *_: None) as found:
        connection = transport.connect(found._listener.address)
        while not found._connections:
            found._handle(1.0)
        process = processes.start(entry, brief, "fork", lambda: forget(found, connection))
        assert os.waitpid(process, 0)[1] == 0, (folder / NAME / "launcher.log").read_text()
    left: list[str] = json.loads((folder / "open").read_text())
    return left


def judge(folder: Path, second: Callable[[str], None]) -> dict[str, object]:
    """Supervise both ranks until the job has ended; return what was concluded."""
    folder.mkdir()
    nothing: Callable[..., Outcome] = lambda *_: passed("")  # noqa: E731 - no step runs here
    leg = Leg("gloo", 2)
    job = Job(NAME, tuple(Step(name, nothing) for name in STEPS), leg=leg, distributed=True)
    brief = Brief(job, "", "cpu", "fp32", DEADLINE / 2, 0, folder, Workspace(folder), folder, None, {})
    outcomes: list[tuple[int, int, str, str]] = []
    began = time.monotonic()

    def note(_job: Job, number: int, rank: int, outcome: Outcome, _seconds: float) -> None:
        outcomes.append((rank, number, outcome.verdict, outcome.detail[:1000]))

    with supervisor.Supervisor(brief, "fork", note) as found:
        running = RunningJob(job, [Nodes()], [RankProgress(number, time.monotonic()) for number in range(2)])
        found._running[NAME] = running
        for run in (good, second):
            if os.fork() == 0:
                run(found._listener.address)
                os._exit(0)
        while found._running and not found.fatal and time.monotonic() - began < DEADLINE:
            found.wait()
        log = folder / NAME / "rank1.log"  # grows after the supervisor looked at it for the last time
        log.parent.mkdir()
        log.touch()
        os.truncate(log, logs.LARGEST + 1)
        result: dict[str, object] = {
            "good": [verdict for rank, _, verdict, _ in outcomes if rank == 0],
            "bad": [(verdict, detail) for rank, _, verdict, detail in outcomes if rank == 1],
            "fatal": found.fatal,
            "broken": sorted(found.broken),
            "seconds": time.monotonic() - began,
            "log": (folder / "events.jsonl").stat().st_size,
        }
    return {**result, "rank_log": log.stat().st_size}


def main(folder: Path) -> None:
    """Print the result of each case."""
    channel.MAX_MESSAGES, channel.MAX_BYTES = 2000, 8 << 20
    for number, (name, parts) in enumerate(cases().items()):
        found = judge(folder / str(number), lambda address, parts=parts: bad(address, parts))  # type: ignore[misc]
        print(json.dumps({"case": name, **found}), flush=True)
    for name, second in {"a flood of stacks": flood_of_stacks, "strangers": strangers, **impostors()}.items():
        print(json.dumps({"case": name, **judge(folder / name.replace(" ", "-"), second)}), flush=True)
    print(json.dumps(inherited(folder / "inherited")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
