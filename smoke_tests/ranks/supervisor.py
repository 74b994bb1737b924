"""Run the jobs, listen to every rank on every node, and end what dies, hangs or is interrupted: which rank, and where."""

import contextlib
import dataclasses
import functools
import json
import os
import pickle
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from smoke_tests import endings
from smoke_tests.options import InputError
from smoke_tests.outcome import Outcome, failed, known_issue, passed
from smoke_tests.plan import Job
from smoke_tests.ranks import channel, flight, logs, nodes, processes, recorder, transport
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import (
    Begin,
    Bye,
    End,
    Ended,
    Exit,
    Facts,
    Fatal,
    Hello,
    ImpostorError,
    Left,
    Looked,
    ProtocolError,
    Received,
    Receiver,
    StackLine,
)
from smoke_tests.ranks.nodes import LocalNode, Node, RemoteNode
from smoke_tests.ranks.progress import RankProgress, RunningJob, innermost_frames
from smoke_tests.ranks.transport import Listener, UnixListener

# A rank whose peer failed has this many seconds to report its own outcome.
GRACE = 5.0
# A step that may hang is given up after this many seconds.
MAY_END_DEADLINE = 15.0
# Seconds to wait for a dead rank's exit code, and for the stack of a rank that hangs.
EXIT_CODE_WAIT = 2.0
STACK_WAIT = 1.0
# Seconds by which a wait takes longer than it may where this process was stopped: by Ctrl-Z, or with its machine.
_STOPPED = 2.0
# The most connections at once: for each rank, whose peers, launchers and agents have fewer, and for everybody else.
_PER_RANK, _STRANGERS = 4, 256
# The most messages that are heard before the clock is judged again.
_WAITING = 10_000
# Seconds in which every other node has to import torch.
READY_DEADLINE = 600.0


def _interruption(number: int) -> str:
    """Return a signal in words, with who sends it where that is likely."""
    of_slurm = number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
    sender = ", which Slurm sends at the time limit, for scancel, and to the other nodes of one that fails," if of_slurm else ""
    return signal.Signals(number).name + sender


class Supervisor:
    """Owner of all processes of a run. Use as a context manager: on exit, no process is left.

    `on_outcome(job, step, rank, outcome, seconds)` is called for each outcome, as it arrives. Ranks connect to `listener`,
    which the supervisor closes.
    """

    def __init__(
        self,
        brief: Brief,
        start_method: str,
        on_outcome: Callable[[Job, int, int, Outcome, float], None],
        listener: Listener | None = None,
        remote: Iterable[RemoteNode] = (),
    ) -> None:
        """Listen for ranks, and take over the signals that end a run. `brief` is every rank's, but for its job and address.

        `remote` are the other nodes of the run, as a `Gathering` at the same listener returns them.
        """
        processes.adopt_orphans()
        self._brief = brief
        self._local = LocalNode(start_method, self._forget)
        self._remote = {node.number: node for node in remote}
        self._on_outcome = on_outcome
        self._running: dict[str, RunningJob] = {}
        self._ended: set[str] = set()  # jobs whose processes may still send something
        self._events = os.open(brief.logs / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._listener = listener or UnixListener()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._connections: dict[socket.socket, Receiver] = {}
        for node in self._remote.values():
            node.pump = self._handle
            self._connections[node.connection] = node.receiver
            self._selector.register(node.connection, selectors.EVENT_READ, functools.partial(self._read, node.connection))
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._drain_wakeups)
        handled = [number for number in endings.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in handled}
        self._wakeup = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        self.places: dict[tuple[str, int], int] = {}  # job and rank -> its node
        self.finished: set[str] = set()
        self.broken: set[str] = set()
        self.fatal = ""
        self._interrupted = 0
        self._trimmed = 0.0  # when the logs were last looked at

    def __enter__(self) -> "Supervisor":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs, and restore the signal handlers."""
        for running in list(self._running.values()):
            for node in running.nodes:
                node.stop(running.job.name)
        for remote in self._remote.values():
            remote.tell("end", code=0, reason=self.fatal)
        processes.stop_children()
        logs.trim(self._brief.logs)  # what a rank wrote since the last look, a second at most
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            # Whoever presses Ctrl-C ten times gets the report of the first: what is left takes no time.
            signal.signal(number, signal.SIG_IGN if self._interrupted else handler)
        self._selector.close()
        for connection in (*self._connections, self._wake, self._woken):
            connection.close()
        self._listener.close()
        os.close(self._events)

    def _forget(self) -> None:
        """Close, in a launcher, what is this process's: whoever has it could hear other ranks, or accept them."""
        for connection in (*self._connections, self._wake, self._woken):
            transport.close(connection)
        self._listener.forget()
        self._selector.close()
        os.close(self._events)

    def _note(self, number: int, _frame: object) -> None:
        self._interrupted = number

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    # nodes

    def prepare(self, device: str, *, trainer: bool) -> None:
        """Have all other nodes import what their ranks share on `device`, the `trainer` included. Raises InputError."""
        for remote in self._remote.values():
            remote.tell("prepare", device=device, trainer=trainer)
        deadline = time.monotonic() + READY_DEADLINE
        late = [*self._remote.values()]
        while late and time.monotonic() < deadline and not self._interrupted and not any(remote.lost for remote in late):
            self._handle(1.0)
            late = [remote for remote in late if "ready" not in remote.facts]
        if self._interrupted:
            raise InputError(f"smoke: interrupted by {_interruption(self._interrupted)} before the first rank started")
        for remote in self._remote.values():
            if problem := remote.facts.get("problem"):
                raise InputError(f"{nodes.name(remote)}: {problem}")
        if late:
            gone = next((remote for remote in late if remote.lost), late[0])
            if gone.problem:
                raise InputError(nodes.ended(gone))
            raise InputError(
                f"{nodes.name(gone)}: expected it to import torch and the rest within {READY_DEADLINE:.0f} s, found it "
                f"{'gone' if gone.lost else 'still at it'}; see its output, and whether its file system is slow"
            )

    def _from_agent(self, remote: RemoteNode, message: channel.Message | StackLine) -> None:
        """Take an agent's message."""
        match message:
            case Facts():
                remote.take(message)
            case Left():
                remote.codes[message.job] = message.code
            case Ended():
                remote.ended[message.job] = message.whole
            case Looked():
                remote.states = message.states
            case Fatal():
                remote.problem = message.error
            case _:
                raise ProtocolError(f"rank channel: expected what an agent sends, found {type(message).__name__.lower()}")

    # jobs

    def start(self, job: Job) -> None:
        """Start a job's process group."""
        brief = dataclasses.replace(self._brief, job=job, address=self._listener.address)
        members: list[Node] = [self._local, *(self._remote[number] for number in sorted(self._remote))]
        del members[brief.nodes_of_job :]
        if len(members) > 1:
            brief = dataclasses.replace(brief, rendezvous=f"{brief.host}:{brief.port or processes.free_port(brief.host)}")
            brief.workspace.brief(job.name).write_bytes(pickle.dumps(brief))
        ranks = [RankProgress(number, time.monotonic()) for number in range(job.processes)]
        self._running[job.name] = RunningJob(job, members, ranks)
        for node in members:
            node.start(brief)

    def run(self, jobs: Iterable[Job], slots: int) -> None:
        """Run `jobs`, at most `slots` process groups at a time, each once those it comes after have finished.

        A job comes after other jobs, or after a `job/step`. Returns when all have ended, or at once when `fatal` is set: a rank
        died or hung where it must not, or a signal arrived.
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
            # Nothing runs and something waits only until the jobs that depend on a broken one are dropped.
            if self._running:
                self.wait()

    def wait(self) -> None:
        """Handle what the ranks send until something happens, then check every job once."""
        now = time.monotonic()
        deadline = min((self._deadline(r, rank) for r in self._running.values() for rank in r.ranks), default=now + 1)
        patience = max(0.0, min(deadline - now, 1.0))
        self._handle(patience)
        self._forgive(time.monotonic() - now - patience)
        if now - self._trimmed > 1.0:
            self._drop_strangers()
            logs.trim(self._brief.logs)
            self._trimmed = now
        if self.fatal:
            return
        if lost := [remote for remote in self._remote.values() if remote.lost]:
            first = next((remote for remote in lost if remote.problem), lost[0])
            why = "" if first.problem else ": its agent or the network to it is gone"
            self.fatal = f"{nodes.ended(first)}{why}; logs: {self._brief.logs}"
            return
        if self._interrupted:
            places = ", ".join(
                f"rank {rank.number} in {r.where(rank)}" for r in self._running.values() for rank in r.ranks if not rank.done
            )
            self.fatal = f"interrupted by {_interruption(self._interrupted)}" + (f" with {places}" if places else "")
            return
        for running in list(self._running.values()):
            self._check(running)

    def _forgive(self, gap: float) -> None:
        """Take a `gap` of seconds, in which this process was stopped, off the ranks' clocks, and hear what they sent since."""
        if gap < _STOPPED:
            return
        for running in self._running.values():
            running.ending = running.ending and running.ending + gap
            for rank in running.ranks:
                rank.since += gap
        for _ in range(_WAITING):
            if not self._handle(0.0) or self.fatal:
                return

    def _deadline(self, running: RunningJob, rank: RankProgress) -> float:
        if rank.done:
            return float("inf")
        if rank.closed:
            return rank.since + EXIT_CODE_WAIT
        if running.ending is not None:
            return running.ending
        step = running.step(rank)
        limit = self._brief.limit(step) if step else self._brief.timeout
        return rank.since + (min(limit, MAY_END_DEADLINE) if step and step.may_end else limit)

    def _check(self, running: RunningJob) -> None:
        """End a job whose launcher or ranks are gone, hang, or are done."""
        now = time.monotonic()
        if not running.job.distributed:
            alone = running.ranks[0]  # is its own launcher
            alone.exit_code = code = self._local.exit_code(running.job.name)
            alone.closed = alone.closed or bool(code and alone.pid is None)
        else:
            for node in running.nodes:
                if code := node.exit_code(running.job.name):
                    why = running.failure or processes.signal_name(code)
                    log = self._brief.logs / running.job.name / processes.launcher_log(node.number)
                    where = f" on {nodes.name(node)}" if node.number else ""
                    self.fatal = f"torchrun's agent for {running.job.name}{where} was lost: {why}; log: {log}"
                    return
        dead = [rank for rank in running.ranks if rank.closed and not rank.done]
        if any(rank.exit_code is not None or now >= self._deadline(running, rank) for rank in dead):
            self._conclude_dead(running, dead)
        if any(not rank.done and not rank.closed and now >= self._deadline(running, rank) for rank in running.ranks):
            self._conclude_hung(running)
        if all(rank.done for rank in running.ranks):
            self._end(running)

    def _end(self, running: RunningJob) -> None:
        ended = [node.stop(running.job.name) for node in running.nodes]
        if not all(ended):
            self.fatal = f"{running.job.name}: expected its killed processes to end, found some that a driver holds; reboot"
        del self._running[running.job.name]
        self._ended.add(running.job.name)
        (self.broken if any(rank.error for rank in running.ranks) else self.finished).add(running.job.name)

    def _conclude_dead(self, running: RunningJob, dead: list[RankProgress]) -> None:
        """Conclude ranks that died. The first of them is the cause: the agent ends the others."""
        # The agent reaps the one that died by itself before it ends the others.
        first = min(dead, key=lambda rank: (rank.reaped, rank.since))
        how = processes.signal_name(first.exit_code) if first.exit_code is not None else "gone, exit code unknown"
        sentence = f"rank {first.number} was {how} in {running.where(first)}"
        if running.may_end():
            # Ranks that die after the first were ended by the agent, or by the loss of their peer.
            earlier, running.cause = running.cause, running.cause or f"rank {first.number} was {how}"
            thrown = "" if earlier else processes.collective_error(self._log(running, first))
            running.foreign = running.foreign or not (earlier or thrown)
            died = f"dies of {thrown}: {how}" if thrown else f"dies: {how}"
            for rank in dead:
                cause = rank is first and not earlier
                self._conclude(running, rank, died if cause else f"ended after {running.cause}")
            running.ending = running.ending or time.monotonic() + GRACE
            return
        self.fatal = f"{sentence}; log: {self._log(running, first)}"
        for rank in running.ranks:
            if not rank.done:
                self._conclude(running, rank, sentence if rank is first else f"ended because {sentence}")

    def _conclude_hung(self, running: RunningJob) -> None:
        """Request the stack of each silent rank once one has passed its deadline, then end the job."""
        now = time.monotonic()
        left = [rank for rank in running.ranks if not rank.done and not rank.closed]
        # Ranks that wait for each other began to wait at about the same time: report them all.
        hung = [rank for rank in left if now - rank.since > (self._deadline(running, rank) - rank.since) / 2]
        states = self._states(running, hung)
        if running.job.distributed and any(node.get(nodes.LAUNCHER) == "T" for node in states.values()):
            self.fatal = (
                f"torchrun's agent for {running.job.name} is stopped (SIGSTOP), so nobody tends its ranks; continue or end "
                f"whatever stopped it; logs: {self._brief.logs / running.job.name}"
            )
            for rank in left:
                self._conclude(running, rank, "ended because the agent is stopped")
            return
        expected = running.may_end() or running.ending is not None
        stopped = {rank.number for rank in hung if states[rank.node].get(str(rank.pid)) == "T"}
        for rank in hung:
            rank.done = True  # what it sends once it is woken for its stack is no outcome
        waits = self._collectives(running)  # before a stopped rank is woken, and goes on
        self._request_stacks(running, hung)
        sentences = []
        for rank in hung:
            what = "is stopped (SIGSTOP)" if rank.number in stopped else "hangs"
            place = f"{running.where(rank)} for {now - rank.since:.0f} s{innermost_frames(rank.stack)}"
            sentences.append(f"rank {rank.number} {what} in {place}")
            self._save_stack(running, rank)
        running.foreign = running.foreign or bool(stopped)
        for rank, sentence in zip(hung, sentences, strict=True):
            self._conclude(running, rank, (f"hangs: {sentence}" if expected else sentence) + waits)
        if not expected:
            self.fatal = "; ".join(sentences) + f"{waits}; logs: {self._brief.logs / running.job.name}"
            for rank in running.ranks:
                if not rank.done:
                    self._conclude(running, rank, f"ended because {sentences[0]}")
        elif running.ending is None:
            running.ending = time.monotonic() + GRACE

    def _conclude(self, running: RunningJob, rank: RankProgress, sentence: str) -> None:
        """Record the outcome of a rank that can no longer report one itself."""
        step = running.step(rank)
        rank.done = True
        if step is not None and step.may_end and not running.foreign and rank.number != step.witness:
            # A control causes the failure on purpose; in a check it is the known issue that the check is about.
            outcome = passed(f"seen: {sentence}") if step.kind == "control" else known_issue(sentence)
        else:
            rank.error = sentence
            if step is not None and step.may_end:
                sentence += "; expected " + (f"rank {rank.number} to report" if rank.number == step.witness else "no such end")
            outcome = failed(sentence)
        number = min(rank.step, len(running.job.steps) - 1)
        self._on_outcome(running.job, number, rank.number, outcome, time.monotonic() - (rank.began or rank.since))

    def _states(self, running: RunningJob, ranks: list[RankProgress]) -> dict[int, Mapping[str, str]]:
        """Return node -> the states of the job's launcher there and of `ranks`, by process."""
        return {
            node.number: node.look(running.job.name, [rank.pid for rank in ranks if rank.pid and rank.node == node.number])
            for node in running.nodes
        }

    def _request_stacks(self, running: RunningJob, ranks: list[RankProgress]) -> None:
        for node in running.nodes:
            node.request_stacks(running.job.name, [rank.pid for rank in ranks if rank.pid and rank.node == node.number])
        deadline = time.monotonic() + STACK_WAIT
        while time.monotonic() < deadline:
            if not self._handle(0.2) and all(rank.stack for rank in ranks):
                return

    def _save_stack(self, running: RunningJob, rank: RankProgress) -> None:
        with contextlib.suppress(OSError):  # its first frames are in the message
            self._log(running, rank).with_suffix(".stack").write_text("\n".join(rank.stack) + "\n")

    def _collectives(self, running: RunningJob) -> str:
        """Save which collectives each rank entered last, and return in words which of them is the one that hangs."""
        entries = {}
        for rank in running.ranks:
            entries[rank.number] = recorder.read(self._brief.workspace.collectives(running.job.name, rank.number))
            lines = [f"{entry.state} {entry.number} {entry.group} {entry}\n" for entry in entries[rank.number]]
            with contextlib.suppress(OSError):  # the one that hangs is in the message
                self._log(running, rank).with_suffix(".collectives").write_text("".join(lines))
        said = self._flight(running) or recorder.explain(entries)
        return f"; collective: {said}" if said else ""

    def _flight(self, running: RunningJob) -> str:
        """Save what NCCL's streams have reached, and return it in words; empty where the ranks do not say it, as with gloo."""
        if running.job.leg.backend != "nccl":
            return ""
        entries = flight.collect(self._brief.workspace.flight(running.job.name), [rank.number for rank in running.ranks])
        for rank in running.ranks:
            lines = [f"{entry.state} {entry.number} {entry.group} {entry}\n" for entry in entries.get(rank.number, ())]
            with contextlib.suppress(OSError):
                self._log(running, rank).with_suffix(".flight").write_text("".join(lines))
        said = recorder.explain(entries)
        return f"{said} (by torch's flight recorder)" if said else ""

    def _log(self, running: RunningJob, rank: RankProgress) -> Path:
        return self._brief.logs / running.job.name / f"rank{rank.number}.log"

    # messages

    def _handle(self, timeout: float) -> bool:
        """Handle what arrives within `timeout` seconds; whether anything did."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def _accept(self) -> None:
        try:
            connection, gate = self._listener.accept()
        except OSError:  # who connected has gone already
            return
        if len(self._connections) >= _STRANGERS + _PER_RANK * sum(len(running.ranks) for running in self._running.values()):
            connection.close()  # more than everybody who belongs to the run opens
            return
        process = transport.peer(connection)
        self._connections[connection] = Receiver(process, gate, processes.parent(process) if process else 0)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        receiver = self._connections[connection]
        try:
            chunk = connection.recv(1 << 16)
        except OSError:  # reset, or silent for too long
            chunk = b""
        try:
            for received in receiver.feed(chunk):
                self._received(receiver, received)
        except ImpostorError as error:
            chunk, receiver.hello = b"", None  # who it says it is had no part in it
            self._refuse(self._own_hello(receiver), str(error))
        except ProtocolError as error:
            chunk = b""
            self._refuse(receiver.hello, str(error))
        if not chunk:
            self._selector.unregister(connection)
            connection.close()
            del self._connections[connection]
            self._disconnected(receiver.hello)

    def _refuse(self, hello: Hello | None, problem: str) -> None:
        """Fail the rank that sent what it must not, and nobody else; its peers have a moment to report what they saw.

        Without a launcher, an agent or a rank that is of the run, nothing can be relied on: that ends the run.
        """
        running, rank = self._sender(hello)
        if running and rank:
            if not rank.done:
                running.foreign = True  # no step expects such an end
                self._conclude(running, rank, f"{problem} (log: {self._log(running, rank)})")
                running.ending = running.ending or time.monotonic() + GRACE
        elif hello and (running or not hello.job):
            self.fatal = f"{problem}; logs: {self._brief.logs / hello.job}"

    def _own_hello(self, receiver: Receiver) -> Hello | None:
        """Return what a process, or its parent, said when it spoke for itself; None for a stranger."""
        own = {receiver.peer, receiver.parent} - {None, 0}
        said = (other.hello for other in self._connections.values() if other.hello and other.peer in own)
        return next((hello for hello in said if hello.rank is not None), None)

    def _require_own(self, running: RunningJob, receiver: Receiver, hello: Hello) -> None:
        """Raise ImpostorError where a process of this machine says that it is another: a launcher, or another rank."""
        launcher, called = running.nodes[0].launcher(running.job.name), self._called(hello)
        if receiver.peer is None or launcher is None:
            return
        is_launcher = hello.rank is None or not running.job.distributed  # which is the rank itself
        if not receiver.parent:
            raise ProtocolError(f"rank channel: expected {called} to live, found process {receiver.peer} gone")
        if receiver.peer != launcher if is_launcher else receiver.parent != launcher:
            expected = f"process {launcher}" if is_launcher else f"a child of process {launcher}"
            raise ImpostorError(f"rank channel: expected {expected} as {called}, found process {receiver.peer}")
        if hello.rank is not None and any(rank.pid == hello.pid and rank.number != hello.rank for rank in running.ranks):
            raise ImpostorError(f"rank channel: expected process {hello.pid} to be one rank alone, found it as {called}, too")

    @staticmethod
    def _called(hello: Hello) -> str:
        return "a launcher" if hello.rank is None else f"rank {hello.rank}"

    def _drop_strangers(self) -> None:
        """Close connections that have not said in time who they are."""
        oldest = time.monotonic() - transport.HANDSHAKE_DEADLINE
        for connection, receiver in list(self._connections.items()):
            if receiver.hello is None and receiver.since < oldest:
                self._selector.unregister(connection)
                connection.close()
                del self._connections[connection]

    def _disconnected(self, hello: Hello | None) -> None:
        running, rank = self._sender(hello)
        if hello and not hello.job and hello.node in self._remote:
            self._remote[hello.node].lost = True
        if running and rank and not rank.done and not (hello and hello.stacks):
            rank.closed, rank.since = True, time.monotonic()

    def _sender(self, hello: Hello | None) -> tuple[RunningJob | None, RankProgress | None]:
        """Return the job and the rank that said `hello`; None for a job that has ended, and for the rank of a launcher."""
        running = self._running.get(hello.job) if hello else None
        if not running or not hello or hello.rank is None or hello.rank >= len(running.ranks):
            return running, None
        return running, running.ranks[hello.rank]

    def _received(self, receiver: Receiver, received: Received) -> None:
        hello, message = receiver.hello, received.message
        running, rank = self._sender(hello)
        if isinstance(message, StackLine):
            if rank and hello and (rank.pid, rank.node, rank.key) == (hello.pid, hello.node, hello.key):
                rank.stack.append(message.text)
            return
        if hello is None:
            return
        if running and rank is None and hello.rank is not None:
            raise ProtocolError(f"rank channel: expected a rank below {len(running.ranks)}, found rank {hello.rank}")
        if hello.job and hello.job not in {*self._running, *self._ended}:
            raise ProtocolError(f"rank channel: expected a job of this run, found {hello.job[:100]!a}")
        if running and isinstance(message, Hello):
            self._require_own(running, receiver, message)
        self._record(hello, message, received.time)
        if not hello.job:
            if hello.node not in self._remote or self._remote[hello.node].receiver is not receiver:
                raise ProtocolError(f"rank channel: expected one agent for each node, found another for node {hello.node}")
            self._from_agent(self._remote[hello.node], message)
            return
        if running is None or hello.stacks:
            return
        if isinstance(message, Exit) and rank is None:
            remote = self._remote.get(hello.node)
            for reaped in running.ranks:
                if (reaped.node, reaped.pid) == (hello.node, message.pid):
                    reaped.exit_code, reaped.reaped = message.code, received.time + (remote.offset if remote else 0.0)
        elif rank is None:
            if isinstance(message, Fatal):
                running.failure = message.error
            elif not isinstance(message, Hello):
                raise ProtocolError(f"rank channel: expected what a launcher sends, found {type(message).__name__.lower()}")
        elif not rank.done:
            self._advance(running, rank, message)

    def _record(self, hello: Hello, message: channel.Message, when: float) -> None:
        """Append a message to the event log."""
        said = {name: value for name, value in channel.fields(message, when).items() if name != "key"}  # others can read it
        event = json.dumps({"job": hello.job, "rank": hello.rank} | said) + "\n"
        with contextlib.suppress(OSError):  # a log, not the evidence: a full disk must not end the run without a message
            os.write(self._events, event.encode())

    def _advance(self, running: RunningJob, rank: RankProgress, message: channel.Message) -> None:
        """Take a rank's message."""
        rank.since = time.monotonic()
        match message:
            case Hello():
                if rank.pid is not None:
                    speaker = f"process {rank.pid} alone to speak for rank {rank.number}"
                    raise ProtocolError(f"rank channel: expected {speaker}, found process {message.pid}, too")
                rank.pid, rank.node, rank.key = message.pid, message.node, message.key
                self.places[running.job.name, rank.number] = message.node
            case Begin() | End() if message.step >= len(running.job.steps):
                raise ProtocolError(f"rank channel: expected {len(running.job.steps)} steps, found step {message.step}")
            case Begin() | End() if message.step != rank.step:
                raise ProtocolError(f"rank channel: expected step {rank.step} of rank {rank.number}, found step {message.step}")
            case Begin() if rank.begun == message.step:
                raise ProtocolError(f"rank channel: expected the end of step {message.step}, found its beginning again")
            case End() if rank.begun != message.step:
                raise ProtocolError(f"rank channel: expected the beginning of step {message.step}, found its end")
            case Begin():
                rank.began, rank.begun = rank.since, message.step
            case End() if message.outcome.verdict == "known-issue" and not running.job.steps[message.step].may_show_known_issue:
                name = running.job.steps[message.step].name
                raise ProtocolError(f"rank channel: expected no known issue in {name}, found one; nothing is known of it")
            case End():
                self._on_outcome(running.job, message.step, rank.number, message.outcome, message.seconds)
                rank.step = message.step + 1
                running.ends[message.step] = running.ends.get(message.step, 0) + 1
                if running.ends[message.step] == len(running.ranks):  # counted, as looking at all each time takes their square
                    self.finished.add(f"{running.job.name}/{running.job.steps[message.step].name}")
            case Bye():
                rank.done = True
            case Fatal():
                step = running.step(rank)
                sentence = f"dies: {message.error}" if step and step.may_end else message.error
                self._conclude(running, rank, f"{sentence} (log: {self._log(running, rank)})")
                running.ending = running.ending or time.monotonic() + GRACE
            case _:
                raise ProtocolError(f"rank channel: expected what a rank sends, found {type(message).__name__.lower()}")
