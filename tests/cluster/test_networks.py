"""Nodes in network namespaces of their own, joined by veth: what can be cut and slowed there is the network itself."""

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_processes import Nodes

PORT, DEADLINE = 29500, 120.0
_NUMBERS = itertools.count()
_SLOW = ("tbf", "rate", "128kbit", "burst", "4kb", "latency", "1000ms")  # netem is no part of every kernel


def ip(*arguments: str) -> None:
    """Run ip, which has to succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


class Networks:
    """Node 0 in the middle, with a link to each of nodes 1 and 2, which reach each other only if node 0 forwards."""

    def __init__(self, root: Path, folder: Path) -> None:
        mark = f"{os.getpid() % 100_000}{next(_NUMBERS)}"
        self.names = [f"sh{mark}n{number}" for number in range(3)]
        self.nodes = Nodes(root, folder, f"10.99.1.1:{PORT}")

    def make(self) -> None:
        """Make namespaces and links."""
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number in (1, 2):
            ip(
                "link",
                "add",
                f"e{number}",
                "netns",
                self.names[0],
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                self.names[number],
            )
            ip("-n", self.names[0], "address", "add", f"10.99.{number}.1/24", "dev", f"e{number}")
            ip("-n", self.names[0], "link", "set", f"e{number}", "up")
            ip("-n", self.names[number], "address", "add", f"10.99.{number}.2/24", "dev", "eth0")
            ip("-n", self.names[number], "link", "set", "eth0", "up")
            ip("-n", self.names[number], "route", "add", "default", "via", f"10.99.{number}.1")
        self.forward(False)

    def forward(self, on: bool) -> None:
        """Let nodes 1 and 2 reach each other, or not."""
        self.inside(0, "sysctl", "-q", "-w", f"net.ipv4.ip_forward={int(on)}")

    def inside(self, node: int, *command: str) -> None:
        """Run a command in the namespace of a node."""
        ip("netns", "exec", self.names[node], *command)

    def start(self, node: int, *options: str) -> subprocess.Popen[str]:
        """Start a node's smoke test."""
        return self.nodes.start(node, *options, count=3, within=("ip", "netns", "exec", self.names[node]))

    def remove(self) -> None:
        """Kill what is left, and remove the namespaces with their links."""
        self.nodes.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def networks(root: Path, tmp_path: Path) -> Iterator[Networks]:
    """Yield three nodes."""
    found = Networks(root, tmp_path)
    try:
        found.make()
        yield found
    finally:
        found.remove()


def last_line(process: subprocess.Popen[str]) -> str:
    """Return what a node, which has to be refused, said last."""
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, said
    return said.splitlines()[-1]


def test_nodes_that_cannot_reach_each_other_are_named(networks: Networks) -> None:
    """Both reach node 0, so that only trying each other shows it; packets vanish, as a firewall drops them."""
    began = time.monotonic()
    nodes = [networks.start(number) for number in range(3)]
    said = [last_line(node) for node in nodes]
    assert said[0].startswith("node 1 (")
    assert "expected to reach node 2 (" in said[0]
    assert "found 10.99.2.2:" in said[0]
    assert "timed out; fix the network or the firewall between them" in said[0]
    assert said[1] == said[2] == f"smoke: node 0 refused the run: {said[0]}"
    assert time.monotonic() - began < 60


def test_slow_network_is_no_broken_one(networks: Networks) -> None:
    """With 128 kbit/s all nodes fit together, and node 0 goes on to torch, which this Python lacks."""
    networks.forward(True)
    for node in (1, 2):
        networks.inside(node, "tc", "qdisc", "add", "dev", "eth0", "root", *_SLOW)
    first, *_ = [networks.start(number, "--join-timeout", "110") for number in range(3)]
    assert "torch cannot be imported" in last_line(first)


def test_node_that_is_cut_off_is_named(networks: Networks) -> None:
    """It has joined, and nothing ends its connection: only that it does not answer shows it."""
    began = time.monotonic()
    first, second = networks.start(0), networks.start(1)
    assert first.stdout
    assert "waiting at" in first.stdout.readline()
    until = time.monotonic() + DEADLINE
    while "10.99.1.1:29500" not in _connections(networks.names[1]):
        assert time.monotonic() < until
        assert second.poll() is None
    ip("-n", networks.names[0], "link", "set", "e1", "down")
    said = last_line(first)
    assert "expected it to join the run, found it gone" in said or "expected 3 nodes within 55 s, found no node" in said
    assert time.monotonic() - began < 90


def _connections(namespace: str) -> str:
    """Return the established connections in a namespace, as ss lists them."""
    return subprocess.run(
        ["ip", "netns", "exec", namespace, "ss", "-Htn", "state", "established"], check=True, capture_output=True, text=True
    ).stdout
