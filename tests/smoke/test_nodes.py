"""Checks that only a run over nodes has, on two nodes of this machine with two ranks each."""

import socket

from .conftest import DEADLINE, Ended, Starter
from .test_sabotage import assert_failed

TOKEN = {"SMOKEHOUSE_TOKEN": "0123456789abcdef" * 4}
SABOTAGES = ("stale_copies", "lost_moments", "another_node")
ONLY = ("hpZ", "universal checkpoint", "nodes")


def over_nodes(starter: Starter, *options: str, sabotage: tuple[str, ...] = ()) -> Ended:
    """Return the run of node 0, which has the report of both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    folder = starter.folder / f"over-nodes{len(starter.started)}"
    shared = ("--nodes", "2", "--nproc", "2", "--device", "cpu", "--endpoint", endpoint, "--report", str(folder), *options)
    other = starter.start("--node-rank", "1", *shared, sabotage=sabotage, report=folder.with_name(f"{folder.name}-1"), **TOKEN)
    first = starter.start("--node-rank", "0", *shared, sabotage=sabotage, report=folder, **TOKEN)
    for node in (first, other):
        node.process.wait(DEADLINE)
    assert other.finish().code == 0  # an agent does what it is told, whatever its ranks find
    return first.finish()


def test_copies_on_each_node_and_going_on_with_one(smoke: Starter) -> None:
    ended = over_nodes(smoke, "--only", ",".join(ONLY))
    assert ended.code == 0, ended.stderr
    copied = ended.found("hpZ", 3)
    assert [(rank["rank"], rank["node"], rank["verdict"]) for rank in copied["ranks"]] == [
        (rank, rank // 2, "passed") for rank in range(4)
    ]
    for stage in (2, 3):
        resumed = ended.found("universal checkpoint", stage)
        assert [(rank["rank"], rank["node"], rank["verdict"]) for rank in resumed["ranks"]] == [
            (0, 0, "passed"),
            (1, 0, "passed"),
        ]
        assert resumed["detail"].startswith("2 ranks in place of 4, next losses within ")


def test_stale_copies_lost_moments_and_another_node(smoke: Starter) -> None:
    ended = over_nodes(smoke, "--zero", "3", "--only", ",".join(ONLY), sabotage=SABOTAGES)
    assert ended.code == 1, ended.stderr
    assert ended.failures() == {("check", "hpZ", 3), ("check", "universal checkpoint", 3), ("check", "nodes", None)}
    packages = r"node 1 \(.*\): packages: expected \w+ as on node 0, found \w+; "
    clocks = r"clocks: expected a difference of 5 s at most, found (59|6\d)\.\d s; run chrony or ntpd"
    assert_failed(ended, "nodes", None, (0, 1, 2, 3), f"{packages}.*{clocks}")
    assert_failed(ended, "hpZ", 3, (0, 1, 2, 3), r"losses: expected .* \(single process\), found .*; off by ")
    assert_failed(ended, "universal checkpoint", 3, (0, 1), r"losses: expected .* as on 4 ranks, found .*; off by ")
