"""A node's agent: starts the launchers of this node as the supervisor on node 0 says, watches them and ends them.

It shares the folder of the report with the supervisor, from which it reads what a job is, and where its ranks meet those of
other nodes. When the supervisor is gone, so is everything that the agent has started.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import os
import pickle
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smoke_tests import preflight, report
from smoke_tests.endings import remedy
from smoke_tests.machine import visible_gpus
from smoke_tests.machine.host import node_name
from smoke_tests.options import InputError, Options
from smoke_tests.ranks import processes, transport
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Channel, Ended, Facts, Fatal, Left, Looked, LostError, Order, Reach
from smoke_tests.ranks.nodes import LocalNode

# Seconds that a node waits for the supervisor, which may have to be scheduled, and imports torch first.
JOIN_DEADLINE = 180.0
# Seconds in which one node has to answer another, and the shared folder has to show a file.
REACH_DEADLINE = 10.0
_RETRY = 0.5
_WATCH = 0.1
# With more nodes than this, each one tries those at distance 1, 2, 4, … instead of all.
_ALL = 32
MARK = "nodes"  # the file by which a node knows that the work folder is shared


def facts(options: Options, host: str, port: int) -> dict[str, Any]:
    """Return what the supervisor compares between nodes, and how others reach this one. Imports no torch."""
    return {
        "environment": options.environment,
        "lock": report.lock_digests(options.lock) if options.lock else None,
        "image": options.image,
        "smoke_tests": _digest(),
        "gpus": 0 if options.device == "cpu" else len(visible_gpus().gpus),
        "host": node_name(),
        "address": host,
        "port": port,
        "machine": preflight.machine(),
    }


def _digest() -> str:
    """Return a SHA-256 of the sources of the smoke test: both ends of the rank channel have to be of one version."""
    place, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(place.rglob("*.py")):
        digest.update(f"{file.relative_to(place)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def others(number: int, count: int) -> list[int]:
    """Return the nodes that node `number` of `count` has to reach: all, or of many a number that grows as the logarithm."""
    if count <= _ALL:
        return [other for other in range(count) if other != number]
    distances = [1 << power for power in range(count.bit_length()) if 1 << power < count]
    return sorted({(number + distance) % count for distance in distances})


def unreachable(number: int, count: int, places: Mapping[str, Any]) -> dict[str, str]:
    """Return which of the nodes that have to be reached from node `number` are not, and why."""
    with concurrent.futures.ThreadPoolExecutor(_ALL) as pool:  # that some are slow must not add up
        tried = pool.map(lambda other: (str(other), _try(*places[str(other)])), others(number, count))
        return {other: why for other, why in tried if why}


def _try(host: str, port: int) -> str:
    """Return why a port of another node cannot be connected to; empty where it can."""
    try:
        socket.create_connection((host, port), REACH_DEADLINE).close()
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"
    return ""


class Agent:
    """One node of a run that another node supervises."""

    def __init__(self, options: Options) -> None:
        """Become the parent of orphans, and listen for other nodes. Raises OSError."""
        self._options = options
        processes.adopt_orphans()
        self._door = socket.create_server(("", 0), backlog=256)  # accepts nothing: the kernel answers, which is enough
        self._local = LocalNode("fork", self._forget)
        self._running: set[str] = set()
        self._host = ""
        self._channel: Channel | None = None
        self._rest = b""

    def run(self) -> int:
        """Serve the supervisor until it ends the run, and return the exit code. Raises InputError."""
        try:
            channel = self._channel = self._join()
            self._host = channel.socket.getsockname()[0]
            channel.send(Facts(facts(self._options, self._host, self._door.getsockname()[1])))
            print(f"smoke: node {self._options.node_rank}: joined {self._options.endpoint}", flush=True)
            return self._serve(channel)
        except LostError as error:
            why = error.strerror or error
            print(f"smoke: node {self._options.node_rank}: lost the supervisor ({why}); see node 0", file=sys.stderr)
            return 1
        except OSError as error:  # of this node, which nobody else can know
            return self._fail(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}; {remedy(error)}")
        finally:
            processes.stop_children()
            self._door.close()

    def _fail(self, problem: str) -> int:
        """Say why this node cannot go on, to node 0, too, and return the exit code."""
        print(f"smoke: node {self._options.node_rank}: {problem}", file=sys.stderr)
        if self._channel:
            with contextlib.suppress(LostError):
                self._channel.send(Fatal(problem))
        return 1

    def _forget(self) -> None:
        """Close, in a launcher, what is this process's: whoever writes to it speaks for the node."""
        transport.close(self._door)
        if self._channel:
            transport.close(self._channel.socket)

    def _join(self) -> Channel:
        """Connect to the supervisor, which may start later. Raises InputError where it cannot be reached."""
        endpoint, patience = self._options.endpoint, max(JOIN_DEADLINE, self._options.join_timeout)
        deadline = time.monotonic() + patience
        found, told = "", {os.strerror(errno.ECONNREFUSED)}  # which only means that node 0 has not started yet
        while time.monotonic() < deadline:
            channel, found = self._connect(endpoint)
            if channel:
                return channel
            if found not in told:
                told.add(found)
                why = f"waits for node 0 at {endpoint} ({found})"
                print(f"smoke: node {self._options.node_rank}: {why}", file=sys.stderr, flush=True)
            time.sleep(_RETRY)  # nothing tells when the other node listens
        raise InputError(
            f"node {self._options.node_rank}: --endpoint {endpoint}: expected node 0 within {patience:.0f} s, found {found}"
            "; see whether it runs, which network its name means, and whether both have the token of this run"
        )

    def _connect(self, endpoint: str) -> tuple[Channel | None, str]:
        try:
            return Channel(f"tcp:{endpoint}", "", None, node=self._options.node_rank), ""
        except OSError as error:
            return None, error.strerror or str(error)

    def _serve(self, channel: Channel) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(channel.socket, selectors.EVENT_READ)
            while True:
                if selector.select(_WATCH):
                    for order in self._orders(channel):
                        if order.order == "end":
                            if said := order.fields.get("reason"):
                                print(f"smoke: {said}", file=sys.stderr)
                            return int(order.fields.get("code", 0))
                        self._obey(channel, order)
                for job in sorted(self._running):
                    if (code := self._local.exit_code(job)) is not None:
                        self._running.remove(job)
                        channel.send(Left(job, code))

    def _orders(self, channel: Channel) -> list[Order]:
        """Return the orders that have arrived. Raises LostError where the supervisor is gone."""
        *lines, self._rest = (self._rest + channel.receive()).split(b"\n")
        return [Order.decode(line) for line in lines]

    def _obey(self, channel: Channel, order: Order) -> None:
        obey: dict[str, Callable[[Channel, Order], None]] = {
            "welcome": self._look_around,
            "prepare": self._prepare,
            "start": self._start,
            "look": self._look,
            "stacks": self._stacks,
            "stop": self._stop,
        }
        obey[order.order](channel, order)

    def _look_around(self, channel: Channel, order: Order) -> None:
        """Try the other nodes and the shared folder."""
        fields, number = order.fields, self._options.node_rank
        found = unreachable(number, len(fields["peers"]), fields["peers"])
        if not appears(Path(fields["folder"], MARK), fields["mark"], REACH_DEADLINE):
            found["folder"] = f"{fields['folder']}: not the folder of node 0, or no file of it seen for {REACH_DEADLINE:.0f} s"
        channel.send(Reach(found))

    def _prepare(self, channel: Channel, order: Order) -> None:
        """Import what ranks share."""
        fields = order.fields
        preflight.use_network(self._host)
        start = "spawn" if fields["device"] == "cuda" else self._options.start
        self._local = LocalNode(start, self._forget)
        problem = ""
        try:
            preflight.check_machine(self._options, fields["device"])
            preflight.preload(self._options, fields["device"], start, trainer=bool(fields["trainer"]))
        except InputError as error:
            problem = str(error)
        channel.send(Facts({"ready": True, "problem": problem}))

    def _start(self, channel: Channel, order: Order) -> None:
        # The folder is as private as the user made it; what a job is comes from there, in no message.
        brief: Brief = pickle.loads(Path(order.fields["file"]).read_bytes())  # noqa: S301
        own = dataclasses.replace(
            brief,
            node=self._options.node_rank,
            host=self._host,
            lock=self._options.lock,
            image=self._options.image,
            address=f"tcp:{self._options.endpoint}",
        )
        self._local.start(own)
        self._running.add(order.job)

    def _look(self, channel: Channel, order: Order) -> None:
        channel.send(Looked(dict(self._local.look(order.job, order.fields["pids"]))))

    def _stacks(self, channel: Channel, order: Order) -> None:
        self._local.request_stacks(order.job, order.fields["pids"])
        for file in map(Path, order.fields.get("files", [])):  # mapped files, which other nodes see once they are written
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDWR)
                os.fsync(descriptor)
                os.close(descriptor)

    def _stop(self, channel: Channel, order: Order) -> None:
        self._running.discard(order.job)
        try:
            whole = self._local.stop(order.job)
        except KeyError:  # never started
            whole = True
        channel.send(Ended(order.job, whole))


def appears(file: Path, content: str, patience: float) -> bool:
    """Whether a file of the supervisor is seen here within `patience` seconds; a network file system shows it late."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if file.read_text() == content:
                return True
        time.sleep(_RETRY)
    return False
