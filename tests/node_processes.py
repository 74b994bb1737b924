"""Starts the nodes of one smoke test, each a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smoke_tests.ranks import transport

NAME = "qwen2.5-vl"
TOKEN = "0123456789abcdef" * 4


class Nodes:
    """The nodes of a run whose node 0 listens at `endpoint`, and which report to `folder`. Close it: nothing is left then."""

    def __init__(self, root: Path, folder: Path, endpoint: str) -> None:
        self.root, self.folder, self.endpoint = root, folder, endpoint
        self.started: list[subprocess.Popen[str]] = []
        self.environ = {**os.environ, "PYTHONPATH": str(root / "src"), transport.TOKEN: TOKEN}

    @property
    def port(self) -> int:
        """The port of node 0."""
        return int(self.endpoint.rpartition(":")[2])

    def start(
        self,
        rank: int,
        *options: str,
        count: int = 2,
        lock: Path | None = None,
        environ: dict[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start a node with this lock, by default that of the environment; `within` is a command that starts another."""
        stack = self.root / "environments" / NAME / "stack.toml"
        command = [*within, sys.executable, "-m", "smoke_tests", "--environment", NAME, "--stack", str(stack)]
        command += ["--lock", str(lock or self.root / "lockfiles" / NAME), "--report", str(self.folder / "report")]
        command += ["--device", "cpu", "--nodes", str(count), "--node-rank", str(rank), "--endpoint", self.endpoint, *options]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environ | (environ or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what is left."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.communicate()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
