"""The nodes of a run as the supervisor sees them: it starts, looks at and ends processes on its own node and on others.

On its own it does so itself, on every other through that node's agent (`smoke_tests.ranks.agent`), which connects to it.
"""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from smoke_tests.machine.host import node_name
from smoke_tests.ranks import processes
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Facts, Order, ProtocolError, Receiver

# Seconds beyond those of the agent that an answer of it may take.
_ANSWER = 5.0
LAUNCHER = "launcher"


class Node(Protocol):
    """A machine with processes of this run."""

    number: int
    host: str

    def start(self, brief: Brief) -> None:
        """Start the launcher of the brief's job."""

    def launcher(self, job: str) -> int | None:
        """Return the process of a job's launcher, None where the kernel of this machine does not know it."""

    def exit_code(self, job: str) -> int | None:
        """Return the exit code of a job's launcher, negative for a signal; None while it runs."""

    def look(self, job: str, pids: Sequence[int]) -> Mapping[str, str]:
        """Return the kernel's letters for the states of the job's launcher, as `LAUNCHER`, and of processes."""

    def request_stacks(self, job: str, pids: Sequence[int]) -> None:
        """Have ranks write their stacks, and what they say of collectives to their files."""

    def stop(self, job: str) -> bool:
        """End a job; whether no process of it is left."""


class LocalNode:
    """The supervisor's own node."""

    number = 0

    def __init__(self, start_method: str, forget: Callable[[], None] = lambda: None) -> None:
        """Start launchers with this method, `fork` or `spawn`; one that is forked calls `forget` first."""
        self.host = node_name()
        self._start_method, self._forget = start_method, forget
        self._launchers: dict[str, int] = {}

    def start(self, brief: Brief) -> None:
        """Start the launcher of the brief's job; imports torch."""
        from smoke_tests.ranks.rank import run

        self._launchers[brief.job.name] = processes.start(run, brief, self._start_method, self._forget)

    def launcher(self, job: str) -> int | None:
        """Return the process of a job's launcher."""
        return self._launchers.get(job)

    def exit_code(self, job: str) -> int | None:
        """Return the exit code of a job's launcher, negative for a signal; None while it runs."""
        return processes.exit_code(self._launchers[job])

    def look(self, job: str, pids: Sequence[int]) -> Mapping[str, str]:
        """Return the kernel's letters for the states of the job's launcher, as `LAUNCHER`, and of processes."""
        return {LAUNCHER: processes.state(self._launchers[job]), **{str(pid): processes.state(pid) for pid in pids}}

    def request_stacks(self, job: str, pids: Sequence[int]) -> None:
        """Have ranks write their stacks."""
        for pid in pids:
            processes.request_stack(pid)

    def stop(self, job: str) -> bool:
        """End a job; whether no process of it is left."""
        return processes.stop(self._launchers.pop(job))


# What agents say of their nodes, and its types.
_FACTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("smoke_tests", "host", "address"), (str,)),
    **dict.fromkeys(("environment", "image"), (str, type(None))),
    **dict.fromkeys(("gpus", "port"), (int,)),
    "lock": (dict, type(None)),
    "machine": (dict,),
    "ready": (bool,),
    "problem": (str,),
}
_LATER = {"ready", "problem"}  # said once the node has imported what its ranks need


class RemoteNode:
    """Another node, by the connection to its agent. `pump(seconds)`, the supervisor's, handles what arrives on any."""

    def __init__(self, number: int, connection: socket.socket, receiver: Receiver, offset: float) -> None:
        """Begin with the agent's hello; `offset` is what to add to its monotonic clock."""
        self.number, self.offset = number, offset
        self.connection, self.receiver = connection, receiver
        self.host = f"node {number}"
        self.facts: dict[str, Any] = {}
        self.unreachable: dict[str, str] | None = None
        self.codes: dict[str, int] = {}
        self.ended: dict[str, bool] = {}
        self.states: Mapping[str, str] | None = None
        self.lost = False
        self.problem = ""  # why its agent could not go on, as it said itself
        self.pump: Callable[[float], bool] = lambda _: False

    def take(self, message: Facts) -> None:
        """Add to what is known of the node. Raises ProtocolError where it is of another form."""
        if self.facts and (again := sorted({*message.facts} - _LATER)):  # what was compared stays as it was
            raise ProtocolError(f"rank channel: expected the facts of a node once, found {again[0]!a} again")
        found = self.facts | message.facts
        odd = [name for name, value in found.items() if type(value) not in _FACTS.get(name, ())]
        odd += [name for name in _FACTS if name not in found and name not in _LATER]
        if odd or not all(isinstance(digest, str) for digest in (found.get("lock") or {}).values()):
            raise ProtocolError(f"rank channel: expected the facts of a node, found an odd {(odd or ['lock'])[0]!a}")
        self.facts = found
        self.host = str(self.facts.get("host", self.host))

    def tell(self, order: str, job: str = "", **fields: object) -> None:
        """Send an order; one to a lost node goes nowhere."""
        try:
            self.connection.sendall(Order(order, job, fields).encode())
        except OSError:
            self.lost = True

    def start(self, brief: Brief) -> None:
        """Have the agent start the launcher of the brief's job, which it reads from the shared folder."""
        self.codes.pop(brief.job.name, None)
        self.ended.pop(brief.job.name, None)
        self.tell("start", brief.job.name, file=str(brief.workspace.brief(brief.job.name)))

    def launcher(self, job: str) -> int | None:
        """Return None: its launchers prove by a key what they are."""
        return None

    def exit_code(self, job: str) -> int | None:
        """Return the exit code of a job's launcher as the agent said it; None while it runs."""
        return self.codes.get(job)

    def look(self, job: str, pids: Sequence[int]) -> Mapping[str, str]:
        """Return the states that the agent sees, none where it does not answer."""
        self.states = None
        self.tell("look", job, pids=[*pids])
        self._await(lambda: self.states is not None, _ANSWER)
        return self.states or {}

    def request_stacks(self, job: str, pids: Sequence[int]) -> None:
        """Have the agent request the stacks of ranks, and write their files to the shared folder."""
        self.tell("stacks", job, pids=[*pids])

    def stop(self, job: str) -> bool:
        """Have the agent end a job; whether no process of it is left. A lost node answers for nothing."""
        self.tell("stop", job)
        self._await(lambda: job in self.ended, processes.STOP_PATIENCE + _ANSWER)
        return self.lost or self.ended.get(job, False)

    def _await(self, condition: Callable[[], bool], patience: float) -> None:
        deadline = time.monotonic() + patience
        while not condition() and not self.lost and (left := deadline - time.monotonic()) > 0:
            self.pump(min(left, 0.5))


def ended(remote: RemoteNode) -> str:
    """Return why a node is lost, in words."""
    return f"{name(remote)}: {remote.problem}" if remote.problem else f"{name(remote)} was lost"


def differences(base: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return how a node differs from the supervisor's in what has to be the same everywhere; empty where it does not."""
    if facts.get("environment") != base["environment"]:
        return f"expected environment {base['environment']}, found {facts.get('environment')}"
    mine, theirs = base["lock"] or {}, facts.get("lock") or {}
    for file in sorted({*mine, *theirs}):
        if mine.get(file) != theirs.get(file):
            expected, found = (digests.get(file, "none")[:12] for digests in (mine, theirs))
            return f"expected the lock of node 0, {file} {expected}, found {found}; install the same lock there"
    if facts.get("image") != base["image"]:
        found = facts.get("image") or "none"
        return f"expected image {base['image'] or 'none'}, found {found}; start the same image on every node"
    if facts.get("smoke_tests") != base["smoke_tests"]:
        return "expected the smoke tests of node 0, found other files; use the same version on every node"
    if int(facts.get("gpus", 0)) < base["gpus"]:
        return (
            f"expected {base['gpus']} GPUs or more, found {facts.get('gpus')}; give --nproc {facts.get('gpus')} or other nodes"
        )
    return ""


def name(node: Node) -> str:
    """Return a node in words."""
    return f"node {node.number} ({node.host})" if node.host != f"node {node.number}" else node.host
