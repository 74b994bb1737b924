"""Runs the jobs, hears every rank, and ends what dies, hangs or is interrupted, with a sentence that says which and where."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import processes
from .jobs import Job, Step
from .outcome import Outcome, failed, known_issue, passed
from .rank import Brief, run

# A rank whose peer has failed gets this long to say how it fared itself.
GRACE = 5.0
# A step that is expected to hang on some stacks is given up after this long.
MAY_END_DEADLINE = 15.0
# How long to wait for a dead rank's exit code, and for the stack of a rank that hangs.
EXIT_CODE_WAIT = 2.0
STACK_WAIT = 1.0


@dataclass
class RankState:
    """Where one rank stands: `step` is the one that it is in or comes to next."""

    number: int
    since: float  # when it last said something, monotonic
    pid: int | None = None
    step: int = 0
    began: float | None = None  # when it began its current step, or the last
    done: bool = False  # it has nothing more to say
    error: str = ""
    closed: bool = False
    exit_code: int | None = None
    reaped: float = float("inf")  # when its exit code was told, by the clock of whoever told it
    stack: list[str] = field(default_factory=list)


@dataclass
class RunningJob:
    """A job with its launcher and its ranks."""

    job: Job
    launcher: int
    ranks: list[RankState]
    failure: str = ""  # what the launcher said when it could not go on
    cause: str = ""  # the first death, where ranks may die
    ending: float | None = None  # when the ranks that are left are given up

    def step(self, rank: RankState) -> Step | None:
        """The step that a rank is in, None before the first and after the last."""
        return None if rank.began is None else self.job.steps[rank.step] if 0 <= rank.step < len(self.job.steps) else None

    def where(self, rank: RankState) -> str:
        """`zero-3 / train`, as people read it."""
        step = self.step(rank)
        stage = f"zero-{self.job.stage} / " if self.job.stage is not None else ""
        return f"{stage}{step.name if step else 'start' if rank.began is None else 'end'}"


class Supervisor:
    """Owns all processes of a run. Use as a context: on leaving it, none of them is left.

    `on_outcome(job, step, rank, outcome, seconds)` is called for each finding, as it comes.
    """

    def __init__(self, brief: Brief, start_method: str, on_outcome: Callable[[Job, int, int, Outcome, float], None]) -> None:
        processes.adopt_orphans()
        self._brief = brief
        self._start_method = start_method
        self._on_outcome = on_outcome
        self._running: dict[str, RunningJob] = {}
        self._events = os.open(brief.logs / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # A socket's path may have 107 bytes, and TMPDIR is long on some clusters.
        usual = tempfile.gettempdir()
        self._folder = tempfile.TemporaryDirectory(prefix="smokehouse-", dir=usual if len(os.fsencode(usual)) < 80 else "/tmp")
        self._address = os.path.join(self._folder.name, "events")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._address)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._signalled)
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        self._wakeup = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        self.finished: set[str] = set()
        self.broken: set[str] = set()
        self.fatal = ""
        self._interrupted = 0

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        for running in list(self._running.values()):
            processes.stop(running.launcher)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._woken.close()
        os.close(self._events)
        self._folder.cleanup()

    def _note(self, number: int, _frame: object) -> None:
        self._interrupted = number

    def _signalled(self, wake: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)

    # the jobs

    def start(self, job: Job) -> None:
        """Start a job's process group."""
        brief = dataclasses.replace(self._brief, job=job, address=self._address)
        ranks = [RankState(number, time.monotonic()) for number in range(job.processes)]
        self._running[job.name] = RunningJob(job, processes.start(run, brief, self._start_method), ranks)

    def run(self, jobs: list[Job], slots: int) -> None:
        """Run `jobs`, at most `slots` process groups at a time, each once those it comes after have finished.

        A job comes after other jobs, or after a `job/step`. Returns when all have ended, or at once when `fatal` is set: a rank
        died or hung where it must not, or a signal came.
        """
        waiting = [job for job in jobs if job.name not in self._running and job.name not in self.finished]
        while (waiting or self._running) and not self.fatal:
            for job in list(waiting):
                if any(name.partition("/")[0] in self.broken for name in set(job.after) - self.finished):
                    waiting.remove(job)
                    self.broken.add(job.name)
                elif set(job.after) <= self.finished and len(self._running) < slots:
                    waiting.remove(job)
                    self.start(job)
            # Nothing runs and something waits: only for as long as the jobs that a broken one takes with it are dropped.
            if self._running:
                self.wait()

    def wait(self) -> None:
        """Handle what the ranks say until something happens, then look after the jobs once."""
        now = time.monotonic()
        deadline = min((self._deadline(r, rank) for r in self._running.values() for rank in r.ranks), default=now + 1)
        for key, _ in self._selector.select(max(0.0, min(deadline - now, 1.0))):
            key.data(key.fileobj)
        if self._interrupted:
            places = ", ".join(
                f"rank {rank.number} in {r.where(rank)}" for r in self._running.values() for rank in r.ranks if not rank.done
            )
            name = signal.Signals(self._interrupted).name
            self.fatal = f"interrupted by {name}" + (f" with {places}" if places else "")
            return
        for running in list(self._running.values()):
            self._look_after(running)

    def _deadline(self, running: RunningJob, rank: RankState) -> float:
        if rank.done:
            return float("inf")
        if rank.closed:
            return rank.since + EXIT_CODE_WAIT
        if running.ending is not None:
            return running.ending
        step = running.step(rank)
        limit = min(self._brief.timeout, MAY_END_DEADLINE) if step and step.may_end else self._brief.timeout
        return rank.since + limit

    def _look_after(self, running: RunningJob) -> None:
        now = time.monotonic()
        code = processes.exit_code(running.launcher)
        if not running.job.distributed:
            alone = running.ranks[0]  # is its own launcher
            alone.exit_code = code
            alone.closed = alone.closed or bool(code and alone.pid is None)
        elif code:
            why = running.failure or processes.signal_name(code)
            log = self._brief.logs / running.job.name / "launcher.log"
            self.fatal = f"torchrun's agent for {running.job.name} was lost: {why}; its log: {log}"
            return
        dead = [rank for rank in running.ranks if rank.closed and not rank.done]
        if any(rank.exit_code is not None or now >= self._deadline(running, rank) for rank in dead):
            self._bury(running, dead)
        if any(not rank.done and not rank.closed and now >= self._deadline(running, rank) for rank in running.ranks):
            self._give_up(running)
        if all(rank.done for rank in running.ranks):
            self._end(running)

    def _end(self, running: RunningJob) -> None:
        processes.stop(running.launcher)
        del self._running[running.job.name]
        (self.broken if any(rank.error for rank in running.ranks) else self.finished).add(running.job.name)

    def _bury(self, running: RunningJob, dead: list[RankState]) -> None:
        """Ranks are gone without a word. The first of them is the cause: the agent ends the others."""
        # The agent reaps the one that died by itself before it ends the others.
        first = min(dead, key=lambda rank: (rank.reaped, rank.since))
        how = processes.signal_name(first.exit_code) if first.exit_code is not None else "gone, its exit code unknown"
        sentence = f"rank {first.number} was {how} in {running.where(first)}"
        if self._may_end(running):
            # Whoever goes after the first was ended by the agent, or by the loss of its peer.
            earlier, running.cause = running.cause, running.cause or f"rank {first.number} was {how}"
            for rank in dead:
                cause = rank is first and not earlier
                self._close(running, rank, f"dies: {how}" if cause else f"ended after {running.cause}")
            running.ending = running.ending or time.monotonic() + GRACE
            return
        self.fatal = f"{sentence}; its log: {self._log(running, first)}"
        for rank in running.ranks:
            if not rank.done:
                self._close(running, rank, sentence if rank is first else f"ended because {sentence}")

    def _give_up(self, running: RunningJob) -> None:
        """A rank has let its deadline pass: ask each that is silent for its stack, then end the job."""
        now = time.monotonic()
        left = [rank for rank in running.ranks if not rank.done and not rank.closed]
        # Ranks that wait for each other began to wait at about the same time: name them all.
        hung = [rank for rank in left if now - rank.since > (self._deadline(running, rank) - rank.since) / 2]
        expected = self._may_end(running) or running.ending is not None
        stopped = {rank.number for rank in hung if rank.pid and processes.state(rank.pid) == "T"}
        for rank in hung:
            rank.done = True  # what it says once it is woken for its stack is no finding
        self._ask_for_stacks(hung)
        sentences = []
        for rank in hung:
            what = "is stopped (SIGSTOP)" if rank.number in stopped else "hangs"
            sentence = f"rank {rank.number} {what} in {running.where(rank)} since {now - rank.since:.0f} s{_stack(rank.stack)}"
            sentences.append(sentence)
            self._save_stack(running, rank)
        for rank, sentence in zip(hung, sentences, strict=True):
            self._close(running, rank, f"hangs: {sentence}" if expected else sentence)
        if not expected:
            self.fatal = "; ".join(sentences) + f"; logs: {self._brief.logs / running.job.name}"
            for rank in running.ranks:
                if not rank.done:
                    self._close(running, rank, f"ended because {sentences[0]}")
        elif running.ending is None:
            running.ending = time.monotonic() + GRACE

    def _may_end(self, running: RunningJob) -> bool:
        """Whether all ranks that are not done are in a step that may end them."""
        steps = [running.step(rank) for rank in running.ranks if not rank.done]
        return all(step is not None and step.may_end for step in steps)

    def _close(self, running: RunningJob, rank: RankState, sentence: str) -> None:
        """Write down the finding for a rank that can no longer speak for itself."""
        step = running.step(rank)
        rank.done = True
        if step is not None and step.may_end:
            # Of a control the failure was wanted; of a check it is the known issue that the check is there to show.
            outcome = passed(f"seen: {sentence}") if step.kind == "control" else known_issue(sentence)
        else:
            rank.error = sentence
            outcome = failed(sentence)
        number = min(rank.step, len(running.job.steps) - 1)
        self._on_outcome(running.job, number, rank.number, outcome, time.monotonic() - (rank.began or rank.since))

    def _ask_for_stacks(self, ranks: list[RankState]) -> None:
        for rank in ranks:
            if rank.pid is not None:
                processes.ask_for_stack(rank.pid)
        deadline = time.monotonic() + STACK_WAIT
        while time.monotonic() < deadline:
            ready = self._selector.select(0.2)
            for key, _ in ready:
                key.data(key.fileobj)
            if not ready and all(rank.stack for rank in ranks):
                return

    def _save_stack(self, running: RunningJob, rank: RankState) -> None:
        with contextlib.suppress(OSError):  # its first frames are in the message
            self._log(running, rank).with_suffix(".stack").write_text("\n".join(rank.stack) + "\n")

    def _log(self, running: RunningJob, rank: RankState) -> Path:
        return self._brief.logs / running.job.name / f"rank{rank.number}.log"

    # the wire

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._selector.register(connection, selectors.EVENT_READ, self._reader())

    def _reader(self) -> Callable[[socket.socket], None]:
        """A callback for one connection: splits what comes into lines and hands each on."""
        rest = b""
        hello: dict[str, Any] = {}

        def read(connection: socket.socket) -> None:
            nonlocal rest
            try:
                chunk = connection.recv(1 << 16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                self._selector.unregister(connection)
                connection.close()
                self._closed(hello)
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if hello.get("stacks"):
                    self._stack_line(hello, line.decode(errors="replace"))
                else:
                    self._heard(hello, json.loads(line))

        return read

    def _find(self, hello: dict[str, Any]) -> Iterator[tuple[RunningJob, RankState]]:
        running = self._running.get(hello.get("job", ""))
        if running is not None and hello.get("rank") is not None:
            yield running, running.ranks[hello["rank"]]

    def _closed(self, hello: dict[str, Any]) -> None:
        if hello.get("stacks"):
            return
        for _, rank in self._find(hello):
            if not rank.done:
                rank.closed, rank.since = True, time.monotonic()

    def _stack_line(self, hello: dict[str, Any], line: str) -> None:
        for _, rank in self._find(hello):
            rank.stack.append(line)

    def _heard(self, hello: dict[str, Any], message: dict[str, Any]) -> None:
        if message["event"] == "hello":
            hello |= message
        event = json.dumps({"job": hello.get("job"), "rank": hello.get("rank")} | message) + "\n"
        with contextlib.suppress(OSError):  # a log, not the evidence: a full disk must not end the run without a word
            os.write(self._events, event.encode())
        if message["event"] == "exit":
            running = self._running.get(hello["job"])
            for rank in running.ranks if running else []:
                if rank.pid == message["pid"]:
                    rank.exit_code, rank.reaped = message["code"], message["time"]
            return
        if message["event"] == "fatal" and hello["rank"] is None:
            self._running[hello["job"]].failure = message["error"]
        if hello.get("stacks"):
            return
        for running, rank in self._find(hello):
            if rank.done:
                continue
            rank.since = time.monotonic()
            if message["event"] == "hello":
                rank.pid = message["pid"]
            elif message["event"] == "begin":
                rank.began = rank.since
            elif message["event"] == "end":
                outcome = Outcome(message["verdict"], message["detail"], message["data"])
                self._on_outcome(running.job, message["step"], rank.number, outcome, message["seconds"])
                rank.step = message["step"] + 1
                if all(other.step > message["step"] for other in running.ranks):
                    self.finished.add(f"{running.job.name}/{running.job.steps[message['step']].name}")
            elif message["event"] == "bye":
                rank.done = True
            elif message["event"] == "fatal":
                step = running.step(rank)
                sentence = f"dies: {message['error']}" if step and step.may_end else message["error"]
                self._close(running, rank, f"{sentence} (log: {self._log(running, rank)})")
                running.ending = running.ending or time.monotonic() + GRACE


def _stack(lines: list[str]) -> str:
    """The innermost frames of the thread that runs the step, from a dump as `faulthandler` writes it, in one line."""
    threads: list[list[str]] = [[]]
    for line in lines:
        if "most recent call first" in line:
            threads.append([])
        elif line.lstrip().startswith("File "):
            threads[-1].append(line.strip().removeprefix("File ").replace('"', "").replace(", line ", ":"))
    own = next((frames for frames in threads if any("smoke_tests" in frame for frame in frames)), [])
    if not own:
        return ", and gave no stack"
    return ", at " + " < ".join("/".join(frame.split("/")[-3:]) for frame in own[:6])
