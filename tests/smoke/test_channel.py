"""The protocol between ranks and supervisor: what is sent is received, over any transport, and nothing else is taken."""

import concurrent.futures
import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_tests.outcome import Outcome
from smoke_tests.ranks import channel, transport
from smoke_tests.ranks.channel import (
    Begin,
    Bye,
    Channel,
    End,
    Ended,
    Exit,
    Facts,
    Fatal,
    Hello,
    Left,
    Looked,
    Order,
    ProtocolError,
    Reach,
    Receiver,
    StackLine,
)
from smoke_tests.ranks.transport import Listener, TcpListener, UnixListener

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
    st.builds(Facts, DATA),
    st.builds(Reach, st.dictionaries(st.integers(0, 10**9 - 1).map(str) | st.just("folder"), st.text(), max_size=3)),
    st.builds(Left, st.text(), st.integers(-64, 255)),
    st.builds(Ended, st.text(), st.booleans()),
    st.builds(Looked, st.dictionaries(st.text(), st.text(), max_size=3)),
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
END = b'{"event": "end", "time": 0, "step": 1, "seconds": 1, "cpu_seconds": 1, "verdict": "passed", "detail": %s, "data": %s}\n'


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        HELLO + END % (b'"\\ud800"', b"{}"),  # half of a pair, which nothing can print
        HELLO + END % (b'"said"', b'{"\\udfff": 1}'),
        HELLO + END % (b'"\xed\xa0\x80"', b"{}"),
        HELLO + END % (b'"said"', b'{"a": ' + b"[" * channel.MAX_DEPTH + b"]" * channel.MAX_DEPTH + b"}"),
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


def test_whole_pairs_and_many_short_lists_are_a_message() -> None:
    data = b'{"a": [' + b", ".join([b"[[1]]"] * channel.MAX_DEPTH) + b'], "b": "[[[["}'
    [_, received] = Receiver().feed(HELLO + END % (b'"\\ud83d\\ude00"', data))
    assert isinstance(received.message, channel.End)
    assert received.message.outcome.detail == "😀"
    assert received.message.outcome.data == json.loads(data)


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
    receiver = Receiver()
    list(receiver.feed(channel.encode(Hello("", 0, 1), 0.0)))
    with pytest.raises(ProtocolError, match="expected at most 100 bytes a message, found more"):
        list(receiver.feed(b"x" * 101))


def test_first_message_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_FIRST", 50)
    with pytest.raises(ProtocolError, match="expected at most 50 bytes a message, found more"):
        list(Receiver().feed(b"x" * 51))


# transports


TOKEN = "0123456789abcdef" * 4


def tcp(host: str = "127.0.0.1") -> TcpListener:
    """Listen on any port of this machine."""
    return TcpListener(host, 0, TOKEN)


@pytest.fixture(params=[UnixListener, tcp])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Each transport."""
    monkeypatch.setenv(transport.TOKEN, TOKEN)
    listener = request.param()
    yield listener
    listener.close()


@contextlib.contextmanager
def connected(listener: Listener, *, node: int = 0) -> Iterator[tuple[Channel, socket.socket, Receiver]]:
    """Connect a rank, which blocks until the other end has taken its proof, and yield both ends after the hello."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sender = pool.submit(Channel, listener.address, "zero3", 1, steps=("load", "train"), node=node)
        while not select.select([listener], [], [], 10)[0]:
            pytest.fail("nobody connects")
        connection, gate = listener.accept()
        receiver = Receiver(transport.peer(connection), gate)
        while receiver.hello is None:
            chunk = connection.recv(1 << 16)
            assert chunk
            list(receiver.feed(chunk))
        channel = sender.result(10)
    yield channel, connection, receiver
    channel.socket.close()
    connection.close()


def test_channel_runs_over_any_transport(listener: Listener) -> None:
    with connected(listener, node=3) as (sender, connection, receiver):
        assert receiver.hello == Hello("zero3", 1, os.getpid(), ("load", "train"), node=3)
        sender.send(Begin(0))
        os.close(os.dup(sender.fileno()))  # a real descriptor, as faulthandler needs
        sender.socket.close()  # the rank dies
        stream = iter(lambda: connection.recv(1 << 16), b"")
        found = [received.message for chunk in stream for received in receiver.feed(chunk)]
        assert found == [Begin(0)]


def test_rank_with_another_token_is_refused_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = tcp()
    monkeypatch.setenv(transport.TOKEN, TOKEN[::-1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sender = pool.submit(transport.connect, listener.address)
        assert select.select([listener], [], [], 10)[0]
        connection, gate = listener.accept()
        receiver = Receiver(transport.peer(connection), gate)
        line = connection.makefile("rb").readline()
        with pytest.raises(
            ProtocolError, match=r"^rank channel: expected a peer that knows the token of the run, found another$"
        ):
            list(receiver.feed(line))
        connection.close()
        with pytest.raises(OSError, match=r"expected the supervisor of this run, found|reset by peer"):
            sender.result(10)
    listener.close()


def test_supervisor_that_does_not_know_the_token_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took its port gets no message, and cannot answer with what it was sent."""
    monkeypatch.setenv(transport.TOKEN, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sender = pool.submit(Channel, f"tcp:127.0.0.1:{server.getsockname()[1]}", "zero3", 1)
        connection, _ = server.accept()
        connection.sendall(b"0" * 64 + b"\n")
        sent = connection.recv(1 << 16)
        connection.sendall(sent.split()[1] + b"\n")
        with pytest.raises(transport.HandshakeError, match="found who does not know its token"):
            sender.result(10)
        assert connection.recv(1 << 16) == b""
        connection.close()
    assert TOKEN.encode() not in sent


@pytest.mark.parametrize(
    "said", [HELLO, b"x" * 1000, b"\n", b"0" * 64 + b" " + b"0" * 64 + b"\n", b"\xff\n", b"0" * 64 + b"\n" + HELLO]
)
def test_stranger_is_not_heard(said: bytes) -> None:
    """Nothing of it is read as a message, and little of it is kept."""
    listener = tcp()
    host, port = listener.address.split(":")[1:]
    with socket.create_connection((host, int(port))) as stranger:
        assert select.select([listener], [], [], 10)[0]
        connection, gate = listener.accept()
        stranger.sendall(said)
        receiver = Receiver(transport.peer(connection), gate)
        with pytest.raises(ProtocolError, match=r"^rank channel: expected "):
            list(receiver.feed(said))
        assert receiver.hello is None
        connection.close()
    listener.close()


def test_token_is_read_from_a_private_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    monkeypatch.setenv(transport.TOKEN_FILE, str(file))
    assert transport.read_token() == TOKEN
    file.chmod(0o640)
    with pytest.raises(ValueError, match=rf"^{file}: expected a file that only its owner can read, .*; run: chmod 600 {file}$"):
        transport.read_token()
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(ValueError, match=rf"^{file}: expected a token of 32 characters or more, found 5; "):
        transport.read_token()
    monkeypatch.delenv(transport.TOKEN_FILE)
    monkeypatch.delenv(transport.TOKEN, raising=False)
    with pytest.raises(ValueError, match=r"^SMOKEHOUSE_TOKEN: expected a token of 32 characters or more, found 0; "):
        transport.read_token()


def test_endpoints() -> None:
    assert transport.split_endpoint("node-1.cluster:29400") == ("node-1.cluster", 29400)
    assert transport.split_endpoint("[fe80::1]:80") == ("fe80::1", 80)
    for wrong in ("node", "node:", ":80", "node:99999", "node:-1", "a b:80", ""):
        with pytest.raises(ValueError, match="expected HOST:PORT, found "):
            transport.split_endpoint(wrong)


def test_interface_of_an_address() -> None:
    assert transport.interface_of("127.0.0.1") == "lo"
    assert transport.interface_of("192.0.2.1") == ""


@given(st.text(), st.text(), st.dictionaries(st.text(), st.integers() | st.text(), max_size=3))
def test_what_is_ordered_is_received(order: str, job: str, fields: dict[str, object]) -> None:
    line = Order(order, job, fields).encode()
    assert line.count(b"\n") == 1
    assert Order.decode(line) == Order(order, job, fields)


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"[" * 100_000, b'{"order": 1, "job": "", "fields": {}}', b"\xff"])
def test_what_is_no_order_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^rank channel: expected an order, found "):
        Order.decode(line)


def test_nobody_listens_after_close() -> None:
    listener = UnixListener()
    address = listener.address
    listener.close()
    with pytest.raises(OSError, match="No such file"):
        transport.connect(address)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rank channel: expected an address of unix, tcp, found 'carrier-pigeon:roof'$"):
        transport.connect("carrier-pigeon:roof")
