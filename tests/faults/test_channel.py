"""A rank speaks for itself alone, and only in messages of the protocol: whatever else it sends is refused in a sentence."""

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.outcome import Outcome
from smoke_tests.ranks import agent, channel, nodes, transport
from smoke_tests.ranks.channel import Begin, Bye, End, Exit, Fatal, Hello, ProtocolError, Receiver

MESSAGES: dict[str, channel.Message] = {
    "hello": Hello("zero3", 1, 7, ("load",)),
    "hello for stacks": Hello("zero3", 1, 7, stacks=True, key="a"),
    "begin": Begin(0),
    "end": End(0, 1.0, 0.5, Outcome("passed", "equal", {"losses": [1.0]})),
    "fatal": Fatal("OSError: no space", "load"),
    "exit": Exit(7, -9),
    "bye": Bye(),
}
# Of each type that JSON has, and numbers that are none.
VALUES: tuple[Any, ...] = (None, True, -1, 1.5, 2**70, float("nan"), float("inf"), "text", ["text"], [1], {"a": 1})
CONNECT = """
import sys
from smoke_tests.ranks.channel import Hello, encode
from smoke_tests.ranks.transport import connect
connection = connect(sys.argv[1])
connection.sendall(encode(Hello("zero3", 0, int(sys.argv[2]), ("load",)), 0.0))
"""


@pytest.mark.parametrize("name", MESSAGES)
def test_each_field_has_its_type(name: str) -> None:
    fields = channel.fields(MESSAGES[name], 1.0)
    assert channel.decode(json.dumps(fields).encode()).message == MESSAGES[name]
    for field in fields.keys() - {"event"}:
        accepted = []
        for value in VALUES:
            with suppress(ProtocolError):
                channel.decode(json.dumps(fields | {field: value}).encode())
                accepted.append(value)
        assert len(accepted) < len(VALUES) / 2, (field, accepted)


@pytest.mark.parametrize("offset", [0, 1])
def test_kernel_says_who_speaks(root: Path, offset: int) -> None:
    listener = transport.UnixListener()
    try:
        listener._socket.settimeout(30)
        code = f"import os, sys; sys.argv.append(str(os.getpid() + {offset})); exec({CONNECT!r})"
        process = subprocess.Popen(
            [sys.executable, "-c", code, listener.address],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root / "src")},
        )
        connection, _ = listener.accept()
        receiver = Receiver(transport.peer(connection))
        assert transport.peer(connection) == process.pid
        line = b""
        while chunk := connection.recv(4096):
            line += chunk
        assert process.wait(30) == 0
        connection.close()
        if offset:
            with pytest.raises(ProtocolError, match=f"expected hello of process {process.pid}, found "):
                list(receiver.feed(line))
        else:
            list(receiver.feed(line))
            assert receiver.hello
            assert receiver.hello.pid == process.pid
    finally:
        listener.close()


def test_what_agents_say_of_their_nodes_is_what_the_supervisor_takes() -> None:
    """A fact that only one of them knows ends every run over nodes."""
    tree = ast.parse(Path(agent.__file__).read_text())
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Facts"]
    said = [*returned, *(argument for call in calls for argument in call.args if isinstance(argument, ast.Dict))]
    sent = {key.value for node in said for key in node.keys if isinstance(key, ast.Constant)}
    assert sent == set(nodes._FACTS)


# roles over TCP, where the kernel does not say who speaks

TOKEN = "0123456789abcdef" * 4
# Left a key by the launcher of node 1, it connects as a role, and says hello.
SPEAK = """
import os, sys
from smoke_tests.ranks import transport
from smoke_tests.ranks.channel import Hello, encode
transport.leave_to_ranks(1)
assert not {transport.TOKEN, transport.TOKEN_FILE} & os.environ.keys()
try:
    connection = transport.connect(sys.argv[1], sys.argv[2])
except (OSError, ValueError) as refused:
    sys.exit(f"{type(refused).__name__}: {refused}")
job, rank, node = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
connection.sendall(encode(Hello(job, None if rank < 0 else rank, os.getpid(), node=node), 0.0))
"""
ROLES = {
    "itself": ("rank 1", "zero3", 0, 1, ""),
    "a launcher": ("launcher 1", "zero3", -1, 1, "token"),
    "an agent": ("agent 1", "", -1, 1, "token"),
    "a rank of another node": ("rank 0", "zero3", 0, 0, "peer"),
    "no role": ("supervisor 1", "zero3", 0, 1, "token"),
    "a launcher, by its own role": ("rank 1", "zero3", -1, 1, "expected hello of rank 1, as was proven"),
    "an agent, by its own role": ("rank 1", "", -1, 1, "expected hello of rank 1, as was proven"),
    "another node, by its own role": ("rank 1", "zero3", 0, 0, "expected hello of rank 1, as was proven"),
}


@pytest.mark.parametrize("kind", ROLES)
def test_a_rank_over_tcp_holds_no_key_but_its_own(
    kind: str, root: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a rank that is another")
    role, job, rank, node, said = ROLES[kind]
    listener = transport.TcpListener("127.0.0.1", 0, TOKEN)
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAK, listener.address, role, job, str(rank), str(node)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src"), transport.TOKEN: TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )
    refused = ""
    try:
        listener._socket.settimeout(30)
        if said != "token":  # it has none, and so does not even connect
            connection, gate = listener.accept()
            receiver = Receiver(None, gate)
            with connection:
                connection.settimeout(30)
                try:
                    while chunk := connection.recv(4096):
                        list(receiver.feed(chunk))
                except ProtocolError as wrong:
                    refused = str(wrong)
            assert (receiver.hello is not None) == (not said)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        listener.close()
    assert said in refused or said == "token"
    assert (process.returncode == 0) == (said == "" or "expected hello" in said), error
    assert said != "token" or "expected a token of 32 characters or more, found 0" in error


def test_what_an_agent_starts_does_not_have_its_connection() -> None:
    connection, other = socket.socketpair()
    found = agent.Agent.__new__(agent.Agent)
    found._door, found._channel = socket.socket(), channel.Channel.__new__(channel.Channel)
    found._channel.socket = connection
    found._forget()
    assert other.recv(1) == b""  # closed
    assert found._door.fileno() == -1
    other.close()
