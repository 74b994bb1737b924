"""Gather the nodes of a run before anything expensive happens: all there, all alike, each within reach of the others.

It imports no torch: a missing or different node is named in seconds, an unreachable one within a minute, not when NCCL gives up
after half an hour.
"""

import secrets
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smoke_tests.options import InputError
from smoke_tests.ranks import agent, channel, nodes, transport
from smoke_tests.ranks.channel import Facts, Fatal, Hello, ProtocolError, Reach, Receiver
from smoke_tests.ranks.nodes import RemoteNode, name
from smoke_tests.ranks.transport import Listener


class Gathering:
    """The nodes that join at a listener: `gather` returns all of them, ready for a supervisor."""

    def __init__(self, listener: Listener, count: int, patience: float) -> None:
        """Expect the agents of nodes 1 to `count` - 1 within `patience` seconds."""
        self._listener, self._count, self._patience = listener, count, patience
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._strangers: dict[socket.socket, Receiver] = {}
        self._nodes: dict[int, RemoteNode] = {}

    def gather(self, own: Mapping[str, Any], folder: Path) -> list[RemoteNode]:
        """Return the other nodes, in order, which agree with `own`, the facts of node 0, and see its `folder`.

        Raises InputError where a node is missing, differs in what has to be the same everywhere, or cannot reach another; the
        agents are then told why.
        """
        try:
            found = self._gather(own, folder)
        except InputError as error:
            for remote in self._nodes.values():
                remote.tell("end", code=2, reason=f"node 0 refused the run: {error}")
                remote.connection.close()
            raise
        finally:
            for connection in self._strangers:
                connection.close()
            self._selector.close()
        return found

    def _gather(self, own: Mapping[str, Any], folder: Path) -> list[RemoteNode]:
        deadline, expected = time.monotonic() + self._patience, range(1, self._count)
        self._wait_for(lambda: all(number in self._nodes and self._nodes[number].facts for number in expected), deadline)
        if missing := [number for number in expected if number not in self._nodes or not self._nodes[number].facts]:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise InputError(
                f"{self._listener.address}: expected {self._count} nodes within {self._patience:.0f} s, found no node "
                f"{', '.join(map(str, missing[:8]))}{more}; see whether it runs, reaches this node and has the run's token; "
                "where it pulls an image first, give a longer --join-timeout"
            )
        for number in expected:
            if different := nodes.differences(own, self._nodes[number].facts):
                raise InputError(f"{name(self._nodes[number])}: {different}")
        self._refuse_unreachable(self._try(own, folder, deadline))
        return [self._nodes[number] for number in expected]

    def _try(self, own: Mapping[str, Any], folder: Path, deadline: float) -> dict[int, dict[str, str]]:
        """Return node -> which others it cannot reach, and why."""
        places = {"0": [own["address"], int(self._listener.address.rpartition(":")[2])]}
        places |= {str(number): [node.facts["address"], node.facts["port"]] for number, node in self._nodes.items()}
        mark = secrets.token_hex(8)
        (folder / agent.MARK).write_text(mark)
        for remote in self._nodes.values():
            remote.tell("welcome", folder=str(folder), mark=mark, peers=places)
        found = {0: agent.unreachable(0, len(places), places)}
        self._wait_for(lambda: all(remote.unreachable is not None for remote in self._nodes.values()), deadline)
        return found | {n: {"0": "no answer"} if r.unreachable is None else r.unreachable for n, r in self._nodes.items()}

    def _refuse_unreachable(self, found: Mapping[int, Mapping[str, str]]) -> None:
        """Raise InputError where a node cannot reach another or the shared folder."""
        for number, problems in sorted(found.items()):
            where = name(self._nodes[number]) if number else "node 0"
            for other, why in sorted(problems.items()):
                if other == "folder":
                    raise InputError(f"{where}: {why}; give --report a folder on a file system that all nodes share")
                target = name(self._nodes[int(other)]) if int(other) in self._nodes else "node 0"
                raise InputError(
                    f"{where}: expected to reach {target}, found {why}; fix the network or the firewall between them, or leave "
                    "the node out"
                )

    def _wait_for(self, condition: Callable[[], bool], deadline: float) -> None:
        """Take messages until `condition` holds, a node is lost or the deadline has passed."""
        while not condition() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, 1.0)):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            self._drop_strangers()
            if lost := [node for node in self._nodes.values() if node.lost]:
                said = next((node for node in lost if node.problem), None)
                raise InputError(
                    nodes.ended(said)
                    if said
                    else f"{name(lost[0])}: expected it to join the run, found it gone; see its output"
                )

    def _accept(self) -> None:
        try:
            connection, gate = self._listener.accept()
        except OSError:  # who connected has gone already
            return
        self._strangers[connection] = Receiver(transport.peer(connection), gate)
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _drop_strangers(self) -> None:
        oldest = time.monotonic() - transport.HANDSHAKE_DEADLINE
        for connection, receiver in list(self._strangers.items()):
            if receiver.since < oldest:
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        self._strangers.pop(connection, None)

    def _read(self, connection: socket.socket) -> None:
        node = next((node for node in self._nodes.values() if node.connection is connection), None)
        receiver = node.receiver if node else self._strangers[connection]
        try:
            chunk = connection.recv(1 << 16)
            for received in receiver.feed(chunk):
                node = self._take(connection, receiver, received)
        except (OSError, ProtocolError):
            chunk = b""
        if not chunk:
            self._drop(connection)
            if node:
                node.lost = True

    def _take(self, connection: socket.socket, receiver: Receiver, received: channel.Received) -> RemoteNode:
        """Take a message, and return its node. Raises ProtocolError where it is none of the run's, or is there already."""
        message, number = received.message, receiver.hello.node if receiver.hello else 0
        if isinstance(message, Hello):
            if message.job or not 0 < number < self._count or number in self._nodes:
                raise ProtocolError(f"rank channel: expected one agent for each node, found another for node {number}")
            del self._strangers[connection]
            self._nodes[number] = RemoteNode(number, connection, receiver, time.monotonic() - received.time)
        if isinstance(message, Facts):
            self._nodes[number].take(message)
        if isinstance(message, Reach):
            self._nodes[number].unreachable = message.unreachable
        if isinstance(message, Fatal):
            self._nodes[number].problem = message.error
        return self._nodes[number]
