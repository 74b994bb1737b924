"""Nodes that do not fit together: each is named in one line by node 0, before torch is imported, and the others end, too."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smoke_tests import options as options_of_smoke
from smoke_tests import page, report
from smoke_tests.options import InputError
from smoke_tests.ranks import agent, nodes, transport
from smoke_tests.ranks.channel import Fatal
from smoke_tests.ranks.gathering import Gathering
from smoke_tests.ranks.transport import TcpListener
from tests.node_processes import NAME, TOKEN, Nodes, free_port

DEADLINE = 60.0


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Yield a starter of nodes."""
    started = Nodes(root, tmp_path, f"127.0.0.1:{free_port()}")
    yield started
    started.close()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a process, and what it said last on standard error."""
    _, said = process.communicate(timeout=DEADLINE)
    return process.returncode, said.splitlines()[-1] if said else ""


def test_node_with_another_lock(run: Nodes, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "lock"
    shutil.copytree(root / "lockfiles" / NAME, other)
    with (other / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    first, second = run.start(0), run.start(1, lock=other)
    code, said = ended(first)
    assert code == 2
    assert said.startswith(f"node 1 ({socket.gethostname()}): expected the lock of node 0, requirements.txt ")
    assert said.endswith("; install the same lock there")
    assert ended(second) == (2, f"smoke: node 0 refused the run: {said}")
    assert not (run.folder / "report" / "report.json").exists()


def test_node_in_another_image(run: Nodes) -> None:
    image = f"sha256:{'0' * 64}"
    first, second = run.start(0, "--image", image), run.start(1)
    code, said = ended(first)
    assert code == 2
    assert said.endswith(f": expected image {image}, found none; start the same image on every node")
    assert ended(second)[0] == 2


def test_shared_folder_is_known_by_its_mark(tmp_path: Path) -> None:
    seen = tmp_path / "nodes"
    assert not agent.appears(seen, "mark", 0.1)
    seen.write_text("of another run")
    assert not agent.appears(seen, "mark", 0.1)
    seen.write_text("mark")
    assert agent.appears(seen, "mark", 0.1)


def test_agent_whose_supervisor_dies_ends(run: Nodes) -> None:
    first, second = run.start(0, count=3), run.start(1, count=3)  # it waits for node 2, so that both wait
    assert first.stdout
    assert second.stdout
    assert "waiting at" in first.stdout.readline()
    assert "supervises" in second.stdout.readline()
    assert "node 1: joined" in second.stdout.readline()  # before, it would wait for a supervisor that starts later
    os.killpg(first.pid, 9)
    code, said = ended(second)
    assert (code, "lost the supervisor" in said) == (1, True), said


def test_name_of_node_0_that_means_nothing_here(root: Path, tmp_path: Path) -> None:
    """The node waits, as the name may be known later, and says for what."""
    run = Nodes(root, tmp_path, "first.invalid:29400")
    try:
        process = run.start(1)
        assert process.stderr
        assert process.stderr.readline().startswith("smoke: node 1: waits for node 0 at first.invalid:29400 (")
    finally:
        run.close()


def test_error_of_a_nodes_own_is_no_lost_supervisor(run: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the node and, for its report, node 0 say what the system refused, and where."""
    remote = supervised(run, tmp_path, monkeypatch)
    remote.tell("start", "job", file=str(tmp_path / "none"))
    expected = f"{tmp_path / 'none'}: No such file or directory; fix it and run it again"
    assert ended(run.started[0]) == (1, f"smoke: node 1: {expected}")
    with remote.connection:
        messages = [one.message for one in remote.receiver.feed(remote.connection.recv(1 << 16))]
    assert messages == [Fatal(expected)]


def test_node_is_called_as_slurm_calls_it(run: Nodes) -> None:
    """That is what --exclude takes; the host may have another name."""
    image = f"sha256:{'0' * 64}"
    first = run.start(0, "--image", image, environ={"SLURMD_NODENAME": "gpu06"})
    second = run.start(1, environ={"SLURMD_NODENAME": "gpu07"})
    assert ended(first)[1].startswith("node 1 (gpu07): expected image ")
    assert "node 1 (gpu07)" in ended(second)[1]


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        (("--node-rank", "7"), {}, "--node-rank 7: expected 0 to 1, found another; see --nodes"),
        (("--endpoint", "nowhere"), {}, "expected HOST:PORT, found 'nowhere'"),
        (("--endpoint", "localhost:0"), {}, "expected a port of 1 to 65535, found 0"),
        ((), {transport.TOKEN: "short"}, "SMOKEHOUSE_TOKEN: expected a token of 32 characters or more, found 5"),
        ((), {transport.TOKEN_FILE: "/nonexistent"}, "SMOKEHOUSE_TOKEN_FILE=/nonexistent: No such file or directory"),
        (("--nodes", "1", "--network", "IB"), {}, "--network IB: expected --nodes 2 or more with it, found one node"),
        (
            ("--nodes", "1", "--join-timeout", "90"),
            {},
            "--join-timeout 90.0: expected --nodes 2 or more with it, found one node",
        ),
        (("--join-timeout", "0"), {}, "'0' is invalid; give seconds between 1 and 86400"),
    ],
)
def test_invalid_options(run: Nodes, options: tuple[str, ...], environ: dict[str, str], expected: str) -> None:
    process = run.start(0, *options, environ=environ)
    _, said = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said.count("\n"), expected in said) == (2, 1, True), said


def test_engine_that_adds_the_nodes_later_validates_what_is_about_them(root: Path) -> None:
    stack, lock = root / "environments" / NAME / "stack.toml", root / "lockfiles" / NAME
    command = ["--environment", NAME, "--stack", str(stack), "--lock", str(lock), "--network", "IB", "--join-timeout", "90"]
    assert options_of_smoke.read([*command, "--validate"]).join_timeout == 90.0
    with pytest.raises(InputError, match=r"^--network IB: expected --nodes 2 or more"):
        options_of_smoke.read(command)


def test_missing_node_is_waited_for_as_long_as_requested(run: Nodes) -> None:
    process = run.start(0, "--join-timeout", "1")
    code, said = ended(process)
    assert code == 2
    assert "expected 2 nodes within 1 s, found no node 1; see whether it runs, " in said
    assert said.endswith("where it pulls an image first, give a longer --join-timeout")


# a supervisor alone, with agents of the test


def supervised(run: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nodes.RemoteNode:
    """Return a real agent as its supervisor sees it, once it has joined."""
    monkeypatch.setenv(transport.TOKEN, TOKEN)
    listener = TcpListener("127.0.0.1", run.port, TOKEN)
    run.start(1)
    arguments = ["--environment", NAME, "--stack", str(run.root / "environments" / NAME / "stack.toml"), "--device", "cpu"]
    arguments += ["--lock", str(run.root / "lockfiles" / NAME), "--report", str(tmp_path), "--nodes", "2", "--node-rank", "0"]
    facts = agent.facts(options_of_smoke.read([*arguments, "--endpoint", f"127.0.0.1:{run.port}"]), "127.0.0.1", run.port)
    [found] = Gathering(listener, 2, DEADLINE).gather(facts, tmp_path)
    listener.close()
    return found


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpListener]:
    """Yield a listener, whose token this process knows."""
    monkeypatch.setenv(transport.TOKEN, TOKEN)
    found = TcpListener("127.0.0.1", 0, TOKEN)
    yield found
    found.close()


def own(listener: TcpListener) -> dict[str, object]:
    """Return facts of node 0."""
    facts: dict[str, object] = {
        "environment": NAME,
        "lock": {"requirements.txt": "0" * 64},
        "image": None,
        "smoke_tests": "1",
        "gpus": 0,
        "machine": {},
    }
    return facts | {"address": "127.0.0.1", "host": "n0", "port": int(listener.address.rpartition(":")[2])}


AGENT = """
import json, sys
from smoke_tests.ranks.channel import Channel, Facts, Order, Reach

number, address, facts, unreachable = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
channel = Channel(address, "", None, node=number)
channel.send(Facts(facts))
stream = channel.socket.makefile("rb")
for line in stream:
    order = Order.decode(line)
    if order.order == "welcome":
        channel.send(Reach(unreachable))
    if order.order == "end":
        print(order.fields["reason"])
        break
"""


def started(
    root: Path, listener: TcpListener, number: int, facts: dict[str, object], unreachable: str
) -> subprocess.Popen[str]:
    """Start a process that answers as an agent does, with these facts."""
    command = [sys.executable, "-c", AGENT, str(number), listener.address, json.dumps(facts), unreachable]
    environ = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    return subprocess.Popen(command, cwd=root, env=environ, text=True, stdout=subprocess.PIPE)


def test_missing_node_is_named(listener: TcpListener, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^tcp:127\.0\.0\.1:\d+: expected 3 nodes within 0 s, found no node 1, 2; see whether"
    ):
        Gathering(listener, 3, 0.1).gather(own(listener), tmp_path)


def test_node_that_cannot_reach_another_is_named(root: Path, listener: TcpListener, tmp_path: Path) -> None:
    facts = [own(listener) | {"host": f"n{number}"} for number in range(3)]
    blocked = '{"1": "10.0.0.1:4000: timed out"}'
    agents = [started(root, listener, number, facts[number], blocked if number == 2 else "{}") for number in (1, 2)]
    expected = r"^node 2 \(n2\): expected to reach node 1 \(n1\), found 10\.0\.0\.1:4000: timed out; fix the network"
    with pytest.raises(InputError, match=expected):
        Gathering(listener, 3, DEADLINE).gather(facts[0], tmp_path)
    for process in agents:
        said, _ = process.communicate(timeout=DEADLINE)
        assert said.startswith("node 0 refused the run: node 2 (n2): expected to reach node 1 (n1)")


def test_strangers_do_not_disturb(root: Path, listener: TcpListener, tmp_path: Path) -> None:
    """One that says nothing, one that says something else, and one that knows another token."""
    port = int(listener.address.rpartition(":")[2])
    silent, loud = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
    loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
    agents = [started(root, listener, 1, own(listener) | {"host": "n1"}, "{}")]
    [found] = Gathering(listener, 2, DEADLINE).gather(own(listener), tmp_path)
    assert (found.number, found.host) == (1, "n1")
    found.tell("end", reason="done")
    assert agents[0].communicate(timeout=DEADLINE)[0] == "done\n"
    for stranger in (silent, loud):
        stranger.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
        stranger.close()


def test_differences() -> None:
    base = {"environment": NAME, "lock": {"requirements.txt": "a" * 64}, "image": None, "smoke_tests": "1", "gpus": 2}
    assert nodes.differences(base, dict(base)) == ""
    for name, value in (
        ("environment", "other"),
        ("lock", {}),
        ("lock", None),
        ("image", "x"),
        ("smoke_tests", "2"),
        ("gpus", 1),
    ):
        assert nodes.differences(base, base | {name: value}).startswith("expected ")
    assert nodes.differences(base, base | {"gpus": 4}) == ""


@pytest.mark.parametrize("count", [2, 3, 32, 33, 1000])
def test_every_node_is_tried_by_another(count: int) -> None:
    tried = [agent.others(number, count) for number in range(count)]
    assert {other for found in tried for other in found} == {*range(count)}
    assert all(number not in found for number, found in enumerate(tried))
    assert max(map(len, tried)) <= max(32, count.bit_length())


def test_unreachable_port_is_named() -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"0": ["127.0.0.1", 1], "1": ["127.0.0.1", server.getsockname()[1]], "2": ["127.0.0.1", free]}
        assert agent.unreachable(0, 3, places) == {"2": f"127.0.0.1:{free}: Connection refused"}


def test_pages_list_all_ranks_that_failed_and_some_that_passed() -> None:
    ranks = [report.RankVerdict(number, "failed" if number in (3, 900) else "passed", "seen") for number in range(1024)]
    shown, more = page.told(ranks)
    assert [rank.rank for rank in shown if rank.verdict == "failed"] == [3, 900]
    assert len(shown) == page.MOST_ALIKE + 2
    assert more == [f"{1024 - 2 - page.MOST_ALIKE} more ranks passed; see report.json"]
    assert page.told(ranks[:5]) == (ranks[:5], [])


def test_pages_list_some_of_the_ranks_that_failed_alike(tmp_path: Path) -> None:
    """What one rank alone said is always there, whatever the others said before it."""
    said = [f"lost rank {number}; log: rank{number}.log" for number in range(512)]
    said[300] = "CUDA error: an illegal memory access"
    ranks = [report.RankVerdict(number, "failed", detail) for number, detail in enumerate(said)]
    shown, [more] = page.told(ranks)
    assert [rank.rank for rank in shown] == [*range(page.MOST_ALIKE), 300]
    assert more == f"{512 - 1 - page.MOST_ALIKE} more ranks ({page.MOST_ALIKE}-299, 301-511): FAIL: as rank 0; see report.json"
    mixed = [report.RankVerdict(rank.rank, rank.verdict, "same" if rank.rank % 2 else "other") for rank in ranks]
    assert [len(each.split("(")[1].split(", ")) for each in page.told(mixed)[1]] == [9, 9]  # ranges do not go on forever
    write_report(tmp_path, [report.Result("collectives", 3, "check", "failed", 1.0, ranks, said[0])])
    for name in ("report.html", "junit.xml"):
        text = (tmp_path / name).read_text()
        assert more in text
        assert "an illegal memory access" in text
        assert "rank511.log" not in text
    assert "rank511.log" in (tmp_path / "report.json").read_text()


def write_report(folder: Path, results: list[report.Result]) -> None:
    """Write the report of a run over nodes with these results."""
    document = {"environment": NAME, "lock": {}, "device": "cpu", "backend": "gloo", "precision": "fp32", "world_size": 1024}
    document |= {"versions": {}, "not_run": [], "verdict": "passed", "failure": "", "seconds": 1.0, "started": "2026-01-01"}
    machine = {"architecture": "x86_64", "cpu": "made up", "cpus": 1, "memory_bytes": 1}
    report.write(folder, document | {"machine": machine, "checkpoint": "made"}, results)


def test_many_ranks_make_a_small_page_and_a_whole_report(tmp_path: Path) -> None:
    ranks = [report.RankVerdict(number, "passed", "seen", number // 8) for number in range(1024)]
    write_report(tmp_path, [report.Result("collectives", 3, "check", "passed", 1.0, ranks, "seen")])
    whole = json.loads((tmp_path / "report.json").read_text())["checks"][0]["ranks"]
    assert whole[-1] == {"rank": 1023, "verdict": "passed", "detail": "seen", "node": 127}
    assert len(whole) == 1024
    for name in ("report.html", "junit.xml"):
        assert "960 more ranks passed; see report.json" in (tmp_path / name).read_text()
