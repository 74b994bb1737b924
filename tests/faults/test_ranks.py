"""Whatever a rank sends: it alone ends, with a sentence, and the supervisor goes on, without a traceback and within bounds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_tests.outcome import Outcome
from smoke_tests.ranks import channel, logs
from smoke_tests.ranks.channel import Facts, ProtocolError, Reach, Receiver
from smoke_tests.ranks.nodes import RemoteNode


def test_a_rank_that_breaks_the_protocol_ends_alone(
    root: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-m", "tests.faults.hostile_ranks", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    *found, inherited = [json.loads(line) for line in ended.stdout.splitlines()]
    assert inherited == []  # by which it could speak for the supervisor, or hear other ranks
    assert len(found) > 50
    for case in found:
        record_property("fault", "a rank that breaks the protocol")
        assert (case["good"], case["fatal"]) == (["passed"] * 3, ""), case
        assert case["log"] < 10 << 20
        assert logs.KEPT < case["rank_log"] < logs.KEPT + 100  # its end, and a line that says so
        assert case["seconds"] < 10, case  # before the deadline of a step, which is what ends a rank that hangs
        if case["case"] == "strangers":
            assert ([verdict for verdict, _ in case["bad"]], case["broken"]) == (["passed"] * 3, [])
            continue
        verdict, detail = case["bad"][-1]
        assert (verdict, case["broken"]) == ("failed", ["train"]), case
        assert detail.startswith("rank channel: expected "), case
        assert len(detail.splitlines()) == 1


def facts(**changed: object) -> dict[str, object]:
    """Facts of a node."""
    usual = {"environment": "x", "lock": {"a": "b"}, "image": None, "smoke_tests": "1", "gpus": 0, "host": "n1"}
    return {**usual, "address": "127.0.0.1", "port": 1, "machine": {}, **changed}


def test_what_an_agent_says_has_a_form(record_property: Callable[[str, object], None]) -> None:
    def node() -> RemoteNode:
        return RemoteNode(1, None, Receiver(), 0.0)  # type: ignore[arg-type]

    node().take(Facts(facts()))
    odd: list[dict[str, object]] = [{name: value} for name in facts() for value in (1.5, [1], b"x") if name != "none"]
    odd += [{"more": 1}, {"lock": {"a": 1}}, {"gpus": "8"}, {"gpus": True}, {"port": None}, {"host": None}, {"machine": None}]
    for changed in odd:
        record_property("fault", "facts of another form")
        with pytest.raises(ProtocolError, match="expected the facts of a node, found an odd '"):
            node().take(Facts(facts(**changed)))
    for name in facts():
        record_property("fault", "facts of another form")
        with pytest.raises(ProtocolError, match=f"found an odd '{name}'"):
            node().take(Facts({other: value for other, value in facts().items() if other != name}))
    for later in ({"lock": {"a": "c"}}, {"environment": "x"}, {"ready": True, "image": "i"}):  # after they were compared
        record_property("fault", "facts that change")
        known = node()
        known.take(Facts(facts()))
        known.take(Facts({"ready": True, "problem": ""}))
        with pytest.raises(ProtocolError, match="expected the facts of a node once"):
            known.take(Facts(later))
    for unreachable in ({"x": "y"}, {"-1": "y"}, {"1": 2}, {"9" * 5000: "y"}):
        record_property("fault", "nodes that are none")
        line = json.dumps({"event": "reach", "time": 1, "unreachable": unreachable}).encode()
        with pytest.raises(ProtocolError):
            channel.decode(line)
    assert channel.decode(channel.encode(Reach({"folder": "y", "1": "z"}), 1.0)).message == Reach({"folder": "y", "1": "z"})


def test_a_long_message_of_a_rank_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="expected at most 4194304 bytes a message, found "):
        channel.encode(channel.End(0, 1.0, 1.0, Outcome("passed", "x" * (5 << 20))), 1.0)
