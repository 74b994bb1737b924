"""The protocol between ranks and supervisor: what is sent is received, over any transport, and nothing else is taken."""

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_tests.outcome import Outcome
from smoke_tests.ranks import channel, transport
from smoke_tests.ranks.channel import Begin, Bye, Channel, End, Exit, Fatal, Hello, ProtocolError, Receiver, StackLine
from smoke_tests.ranks.transport import Listener, UnixListener

NUMBERS = st.integers(0, 2**31)
SECONDS = st.floats(0, 1e6)
DATA = st.dictionaries(
    st.text(max_size=5), st.lists(st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), max_size=3)
)
OUTCOMES = st.builds(Outcome, st.sampled_from(["passed", "failed", "known-issue"]), st.text(), DATA)
HELLOS = st.builds(Hello, st.text(), st.none() | NUMBERS, NUMBERS, st.lists(st.text()).map(tuple))
MESSAGES = st.one_of(
    st.builds(Begin, NUMBERS),
    st.builds(End, NUMBERS, SECONDS, SECONDS, OUTCOMES),
    st.builds(Fatal, st.text(), st.text()),
    st.just(Bye()),
    st.builds(Exit, NUMBERS, st.integers(-64, 255)),
)


@given(HELLOS, st.lists(MESSAGES, max_size=5), SECONDS, st.integers(1, 50))
def test_what_is_sent_is_received(hello: Hello, messages: list[channel.Message], when: float, size: int) -> None:
    """However the stream is cut into chunks."""
    sent = [hello, *messages]
    stream = b"".join(channel.encode(message, when) for message in sent)
    receiver = Receiver()
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    received = [found for chunk in chunks for found in receiver.feed(chunk)]
    assert [found.message for found in received] == sent
    assert {found.time for found in received} == {when}
    assert receiver.hello == hello


@given(MESSAGES | HELLOS)
def test_message_is_one_line_of_json(message: channel.Message) -> None:
    line = channel.encode(message, 1.5)
    assert line.count(b"\n") == 1
    content = json.loads(line)
    assert content == json.loads(json.dumps(channel.fields(message, 1.5)))
    assert content["time"] == 1.5


def test_stacks_are_plain_text() -> None:
    receiver = Receiver()
    list(receiver.feed(channel.encode(Hello("zero3", 1, 7, stacks=True), 0.0)))
    found = list(receiver.feed(b'Thread 0x1:\n  File "a\xff.py", line 1 in f\n  File'))
    assert [received.message for received in found] == [StackLine("Thread 0x1:"), StackLine('  File "a�.py", line 1 in f')]


HELLO = channel.encode(Hello("zero3", 1, 7), 0.0)


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"event": "surprise", "time": 0}\n',
        b'{"event": "bye"}\n',
        b'{"event": "bye", "time": 0}\n',  # before hello
        HELLO + HELLO,
        HELLO + b'{"event": "begin", "time": 0}\n',
        HELLO + b'{"event": "begin", "time": 0, "step": 1, "extra": 2}\n',
        HELLO + b'{"event": "end", "time": 0, "step": 1, "seconds": 1, "cpu_seconds": 1}\n',
    ],
)
def test_what_is_no_message_is_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^rank channel: expected .*, found "):
        list(Receiver().feed(stream))


@given(st.binary(max_size=200))
def test_any_line_is_a_message_or_refused(content: bytes) -> None:
    line = content.replace(b"\n", b"")
    said = ""
    try:
        channel.decode(line)
    except ProtocolError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


def test_message_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_LINE", 100)
    with pytest.raises(ProtocolError, match="expected at most 100 bytes a message, found "):
        channel.encode(Fatal("x" * 100), 0.0)
    with pytest.raises(ProtocolError, match="expected at most 100 bytes a message, found more"):
        list(Receiver().feed(b"x" * 101))


# transports


class TcpListener:
    """A second transport, as ranks on other nodes will need."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))

    @property
    def address(self) -> str:
        host, port = self._server.getsockname()
        return f"tcp:{host}:{port}"

    def fileno(self) -> int:
        return self._server.fileno()

    def accept(self) -> socket.socket:
        return self._server.accept()[0]

    def close(self) -> None:
        self._server.close()


def connect_tcp(where: str) -> socket.socket:
    """Connect to HOST:PORT."""
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)))


@pytest.fixture(params=[UnixListener, TcpListener])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Each transport."""
    monkeypatch.setitem(transport.SCHEMES, "tcp", connect_tcp)
    listener = request.param()
    yield listener
    listener.close()


def test_channel_runs_over_any_transport(listener: Listener) -> None:
    sender = Channel(listener.address, "zero3", 1, steps=("load", "train"))
    connection = listener.accept()
    sender.send(Begin(0))
    os.close(os.dup(sender.fileno()))  # a real descriptor, as faulthandler needs
    sender._socket.close()  # the rank dies
    receiver = Receiver()
    stream = iter(lambda: connection.recv(1 << 16), b"")
    found = [received.message for chunk in stream for received in receiver.feed(chunk)]
    assert found == [Hello("zero3", 1, os.getpid(), ("load", "train")), Begin(0)]
    connection.close()


def test_nobody_listens_after_close() -> None:
    listener = UnixListener()
    address = listener.address
    listener.close()
    with pytest.raises(OSError, match="No such file"):
        transport.connect(address)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rank channel: expected an address of unix, found 'carrier-pigeon:roof'$"):
        transport.connect("carrier-pigeon:roof")
