"""The protocol between ranks and supervisor.

Each rank and each launcher opens a connection to the supervisor (`transport` carries it) and sends messages; nothing is sent
back. A message is one line: a JSON object in UTF-8 that ends with a newline, `MAX_LINE` bytes at most. Every object has
`event`, the message's name, and `time`, the sender's monotonic clock in seconds; the clocks of one machine agree. Over nodes
each other node has an agent, which opens one, too, and gets orders over it: see `Order`.

    event  fields                                       sent
    -----  -------------------------------------------  ------------------------------------------------------------
    hello  job, rank, pid, [steps], [stacks], [node],   once, first; `rank` is null for a launcher, `job` empty for an agent
           [key]
    begin  step                                         by a rank, before it runs step `step` of its job
    end    step, seconds, cpu_seconds, verdict,         by a rank, after the step, with its outcome
           detail, data
    fatal  error, [check]                               instead of what would follow: the sender cannot go on
    bye    -                                            by a rank, last, when it ran all its steps
    exit   pid, code                                    by a launcher, for each rank that it reaped; negative: a signal
    facts  facts                                        by an agent, once: what the supervisor compares between nodes
    reach  unreachable                                  by an agent: which nodes it cannot connect to, and why
    left   job, code                                    by an agent: the launcher of `job` on its node has ended
    ended  job, whole                                   by an agent: `job` was stopped; false where a process survived it
    looked states                                       by an agent: process -> the kernel's letter for its state

A rank's order is hello, (begin, end)*, then bye or fatal. A connection that closes before either means that the rank died. A
launcher's order is hello, exit*, [fatal]. Fields in brackets are left out where they have nothing to say.

A rank opens a second connection, whose hello has `stacks`: true. What follows on it is no JSON but plain text, which
`faulthandler` writes when the rank gets SIGUSR1, so that the stack of a rank that hangs in C code can be read. Both hellos have
the same random `key`, which the other ranks do not know.

Both sides run the same version of this module. A line that breaks these rules is a `ProtocolError`.
"""

import dataclasses
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smoke_tests.outcome import Outcome
from smoke_tests.ranks import transport

# Bytes of a message; those of a whole run have 0.1 MB at most. What a connection says first has far less.
MAX_LINE = 4 * 2**20
MAX_FIRST = 2**20
# Messages and lines of stacks on one connection, and their bytes; a rank sends two messages for each step.
MAX_MESSAGES = 100_000
MAX_BYTES = 64 * 2**20
# Seconds that a message can mention; the largest number of the platform's clocks is below.
_LONGEST = 1e12
# Lists and objects within each other in a message; the losses, weights and machines that are sent have 5 at most.
MAX_DEPTH = 50
# The escape of half of a surrogate pair, or of a whole one.
_UNPRINTABLE = re.compile(rb"\\u[dD][89a-fA-F]")
VERDICTS = ("passed", "failed", "known-issue")  # that a rank can give; whether one is only observed is not its decision


class ProtocolError(Exception):
    """A line that is not a message of this protocol."""


class LostError(OSError):
    """The supervisor, or the network to it, is gone; other errors of the system are of this machine."""


class ImpostorError(ProtocolError):
    """The hello of a process that speaks for another."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who sends on this connection. With the steps' names the event log, which counts steps, can be read by itself."""

    job: str
    rank: int | None
    pid: int
    steps: tuple[str, ...] = ()
    stacks: bool = False
    node: int = 0
    key: str = ""

    @property
    def role(self) -> str:
        """What the sender says that it is, as a transport has roles."""
        kind = transport.AGENT if not self.job else transport.LAUNCHER if self.rank is None else transport.RANK
        return f"{kind} {self.node}"


@dataclass(frozen=True, slots=True)
class Begin:
    """A rank begins a step, given by its place in the job."""

    step: int


@dataclass(frozen=True, slots=True)
class End:
    """A rank's outcome of a step; `cpu_seconds` counts all its threads."""

    step: int
    seconds: float
    cpu_seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Fatal:
    """A rank raised in the step `check`, a launcher could not start its ranks, or an agent cannot go on."""

    error: str
    check: str = ""


@dataclass(frozen=True, slots=True)
class Bye:
    """A rank ran all its steps."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A launcher reaped the process `pid`; `code` is negative for a signal."""

    pid: int
    code: int


@dataclass(frozen=True)
class Facts:
    """What an agent's node has: lock, image, address and so on; see `smoke_tests.ranks.agent.facts`."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Reach:
    """The nodes that an agent's node cannot connect to, by number, and why."""

    unreachable: dict[str, str]


@dataclass(frozen=True)
class Left:
    """The launcher of a job on an agent's node has ended by itself; `code` is negative for a signal."""

    job: str
    code: int


@dataclass(frozen=True)
class Ended:
    """An agent has ended a job, `whole` unless a process of it did not die."""

    job: str
    whole: bool


@dataclass(frozen=True)
class Looked:
    """The states of processes on an agent's node, by process id; that of the launcher is at `launcher`."""

    states: dict[str, str]


@dataclass(frozen=True)
class StackLine:
    """One line of text on a connection for stacks."""

    text: str


Message = Hello | Begin | End | Fatal | Bye | Exit | Facts | Reach | Left | Ended | Looked
_TYPES: dict[str, type[Message]] = {"hello": Hello, "begin": Begin, "end": End, "fatal": Fatal, "bye": Bye, "exit": Exit}
_TYPES |= {"facts": Facts, "reach": Reach, "left": Left, "ended": Ended, "looked": Looked}
_EVENTS = {kind: event for event, kind in _TYPES.items()}
_FIELDS = {kind: [field.name for field in dataclasses.fields(kind)] for kind in _EVENTS}


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and when it was sent by the sender's monotonic clock."""

    message: Message | StackLine
    time: float = 0.0


def fields(message: Message, when: float) -> dict[str, Any]:
    """Return a message as the JSON object that is sent and logged."""
    content = {name: getattr(message, name) for name in _FIELDS[type(message)]}
    if isinstance(message, End):
        outcome: Outcome = content.pop("outcome")
        content |= {"verdict": outcome.verdict, "detail": outcome.detail, "data": outcome.data}
    if isinstance(message, Hello):
        content = {name: value for name, value in content.items() if value or name not in ("steps", "stacks", "node", "key")}
    if isinstance(message, Fatal) and not message.check:
        del content["check"]
    return {"event": _EVENTS[type(message)], "time": when, **content}


def encode(message: Message, when: float) -> bytes:
    """Return a message as a line. Raises ProtocolError where it is too long."""
    line = json.dumps(fields(message, when)).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ProtocolError(f"rank channel: expected at most {MAX_LINE} bytes a message, found {len(line)}")
    return line


def decode(line: bytes) -> Received:
    """Return the message in a line. Raises ProtocolError."""
    try:
        content = json.loads(line.decode())
        if _UNPRINTABLE.search(line):
            json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair cannot be printed
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
            _require_depth(content)
        kind, when = _TYPES[content.pop("event")], float(content.pop("time"))
        if kind is End:
            content["outcome"] = Outcome(content.pop("verdict"), content.pop("detail"), content.pop("data"))
        if "steps" in content:
            if not isinstance(content["steps"], list):
                raise TypeError("the steps are none")
            content["steps"] = tuple(content["steps"])
        message = kind(**content)
        _require_types(message, when)
        return Received(message, when)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"[:100]
        raise ProtocolError(f"rank channel: expected a message, found {line[:100]!r} ({reason!a})") from error


def _require_depth(content: Any) -> None:
    """Raise ValueError where lists and objects are nested deeper than whoever writes them again can follow."""
    inner = [content]
    for _ in range(MAX_DEPTH):
        levels = [level.values() if isinstance(level, dict) else level for level in inner]
        inner = [value for level in levels for value in level if isinstance(value, dict | list)]
        if not inner:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _require_types(message: Message, when: float) -> None:
    """Raise TypeError where a field of a message has another type, or a number is out of range."""
    outcome = message.outcome if isinstance(message, End) else Outcome("passed", "")
    numbers = [getattr(message, name) for name in ("pid", "step", "node") if hasattr(message, name)]
    numbers += [message.rank] if isinstance(message, Hello) and message.rank is not None else []
    seconds = [when, *((message.seconds, message.cpu_seconds) if isinstance(message, End) else ())]
    texts = [getattr(message, name) for name in ("job", "error", "check", "key") if hasattr(message, name)]
    texts += [outcome.detail, *(message.steps if isinstance(message, Hello) else ())]
    if any(type(number) is not int or not 0 <= number < 2**32 for number in numbers):
        raise TypeError("a number is none")
    if any(type(second) not in (int, float) or not 0 <= second < _LONGEST for second in seconds):
        raise TypeError("a time is none")
    if isinstance(message, Exit | Left) and not (type(message.code) is int and abs(message.code) < 2**31):
        raise TypeError("the exit code is none")
    if isinstance(message, Ended) and type(message.whole) is not bool:
        raise TypeError("an end is none")
    if isinstance(message, Facts) and not isinstance(message.facts, dict):
        raise TypeError("the facts are none")
    for table in [getattr(message, name) for name in ("unreachable", "states") if hasattr(message, name)]:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise TypeError("a table is none")
    if isinstance(message, Reach) and not all(
        other == "folder" or re.fullmatch("[0-9]{1,9}", other) for other in message.unreachable
    ):
        raise TypeError("a node is none")
    if not all(isinstance(text, str) for text in texts) or (isinstance(message, Hello) and type(message.stacks) is not bool):
        raise TypeError("a text is none")
    if outcome.verdict not in VERDICTS or not isinstance(outcome.data, dict):
        raise TypeError("the outcome is none")


@dataclass(frozen=True)
class Order:
    """What the supervisor tells an agent, one line of JSON each way as messages are.

    `welcome` with `folder`, `mark` and `peers` (node -> host and port), `prepare` with `device` and `trainer`; then `start`,
    `stop`, `look` and `stacks` with `job` and `pids`, and last `end` with `code` and `reason`.
    """

    order: str
    job: str = ""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the order as a line."""
        return json.dumps({"order": self.order, "job": self.job, "fields": self.fields}).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Order":
        """Return the order in a line. Raises ProtocolError."""
        try:
            content = json.loads(line)
            order = cls(content["order"], content["job"], content["fields"])
            if not (isinstance(order.order, str) and isinstance(order.job, str) and isinstance(order.fields, dict)):
                raise TypeError("a field is none")
            return order
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"rank channel: expected an order, found {line[:100]!r} ({error})") from error


class Channel:
    """A rank's, launcher's or agent's end of a connection."""

    def __init__(
        self,
        address: str,
        job: str,
        rank: int | None,
        *,
        steps: tuple[str, ...] = (),
        stacks: bool = False,
        node: int = 0,
        key: str = "",
    ) -> None:
        """Connect to the supervisor and introduce this process. Raises OSError."""
        hello = Hello(job, rank, os.getpid(), steps, stacks, node, key)
        self.socket = transport.connect(address, hello.role)
        self.send(hello)

    def send(self, message: Message) -> None:
        """Send a message. Raises LostError when the supervisor is gone."""
        try:
            self.socket.sendall(encode(message, time.monotonic()))
        except OSError as error:
            raise LostError(*error.args) from error

    def receive(self) -> bytes:
        """Return what has arrived, at least a byte. Raises LostError when the supervisor is gone."""
        try:
            chunk = self.socket.recv(1 << 16)
        except OSError as error:
            raise LostError(*error.args) from error
        if not chunk:
            raise LostError(errno.ECONNRESET, "connection closed")
        return chunk

    def fileno(self) -> int:
        """Return the connection's descriptor, for `faulthandler`."""
        return self.socket.fileno()


class Receiver:
    """The supervisor's end of a connection: takes bytes as they come, gives messages."""

    def __init__(self, peer: int | None = None, gate: transport.Gate | None = None, parent: int = 0) -> None:
        """Begin before the hello, which has to be of the process `peer`, None where the kernel does not know it.

        Before it the first line has to pass the `gate`, where there is one. `parent` is the peer's parent, 0 if unknown.
        """
        self.peer, self.parent = peer, parent
        self._gate = gate
        self._role = ""
        self.since = time.monotonic()
        self.hello: Hello | None = None
        self._rest: list[bytes] = []  # of an incomplete line
        self._size = 0
        self._messages, self._bytes = 0, 0

    def feed(self, chunk: bytes) -> Iterator[Received]:
        """Yield what `chunk` completes. Raises ProtocolError, after which the connection is of no use."""
        *lines, rest = chunk.split(b"\n")
        self._bytes += len(chunk)
        for line in lines:
            self._messages += 1
            if self._messages > MAX_MESSAGES or self._bytes > MAX_BYTES:
                raise ProtocolError(
                    f"rank channel: expected at most {MAX_MESSAGES} messages of {MAX_BYTES} bytes altogether, found more"
                )
            whole = b"".join([*self._rest, line])
            self._rest, self._size = [], 0
            if self._gate is None:
                yield self._received(whole)
            else:
                self._enter(whole)
        self._rest.append(rest)
        self._size += len(rest)
        most = transport.LONGEST_PROOF if self._gate else MAX_FIRST if self.hello is None else MAX_LINE
        if self._size > most:
            raise ProtocolError(f"rank channel: expected at most {most} bytes a message, found more")

    def _enter(self, line: bytes) -> None:
        try:
            if self._gate:
                self._gate.enter(line[: transport.LONGEST_PROOF])
                self._role = self._gate.role
        except transport.HandshakeError as error:
            raise ProtocolError(str(error)) from error
        self._gate = None

    def _received(self, line: bytes) -> Received:
        if self.hello is not None and self.hello.stacks:
            return Received(StackLine(line.decode(errors="replace")))
        received = decode(line)
        if isinstance(received.message, Hello) != (self.hello is None):
            raise ProtocolError(f"rank channel: expected hello once and first, found {line[:100]!r}")
        if isinstance(received.message, Hello) and self.peer not in (None, received.message.pid):
            raise ProtocolError(f"rank channel: expected hello of process {self.peer}, found {line[:100]!r}")
        if isinstance(received.message, Hello) and self._role not in ("", received.message.role):
            raise ProtocolError(f"rank channel: expected hello of {self._role}, as was proven, found {line[:100]!r}")
        if isinstance(received.message, Hello):
            self.hello = received.message
        return received
