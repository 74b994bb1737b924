"""What a job of Slurm does on its first node: start a command on every node, pass on what they say, and keep the first cause.

srun ends nothing because one node failed: the others know by themselves what they have lost, and say so. Each node ends with a
line of its own, which has its exit code.
"""

import contextlib
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from smokehouse import clock
from smokehouse.programs import slurm as program
from smokehouse.runs import local

# Below 32768, from where Linux takes the ports of clients: one of those may be in use.
_FIRST_PORT, _PORTS = 20_000, 12_000
_SRUN = ("srun", "--ntasks-per-node=1", "--label", "--wait=0", "--kill-on-bad-exit=0")
# Seconds in which the other nodes end by themselves once the first has, and srun when it was told to.
GRACE = 10.0
_KILL = 15.0
_ENDED = "smokehouse-node-ended"
# On each node: caches of its own, as train.sbatch has them, where home may be on NFS.
CACHES = """\
caches() {
    folder=${NODE_CACHE:-/tmp}/smokehouse-$(id -u)
    { mkdir -p "${folder%/*}" && mkdir -m 700 "$folder"; } 2> /dev/null || true
    { [ -O "$folder" ] && [ ! -L "$folder" ]; } || folder=$(mktemp -d "$folder-XXXXXX") || return 0
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$folder/triton}"
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$folder/torch_extensions/$1}"
}
"""
# On each node: the line that says how it ended. SIGTERM is for the command, which this waits for.
_NODE = f'{CACHES}caches smoke; trap : TERM; "$@"; code=$?; echo "{_ENDED} $code" >&2; exit $code'
_LABELLED = re.compile(rb" *([0-9]+): (.*)", re.DOTALL)
# Bytes after which srun breaks a line that it labels; a line of so many goes on with the next one of the same node.
_PIECE = 1024
# Bytes on the shared disk that the job gives back when it ends: on a full disk, what it says then needs them.
RESERVE = "reserve"
_RESERVED = 1 << 18


def srun(nodes: int, *options: str) -> tuple[str, ...]:
    """Return what a command begins with that runs on each of a job's nodes."""
    return (*_SRUN, f"--nodes={nodes}", *options, "sh", "-c", _NODE, "smokehouse")


def port_of(job: str) -> int:
    """Return the port at which the nodes of a job meet, which other jobs on the same nodes do not have."""
    return _FIRST_PORT + int(re.sub(r"\D", "", job)) % _PORTS


def reserve(folder: Path) -> Path:
    """Take disk space in `folder` that a job gives back when it ends; raises OSError."""
    file = folder / RESERVE
    file.write_bytes(secrets.token_bytes(_RESERVED))
    return file


@dataclass(frozen=True)
class End:
    """How a node's command ended: its exit code, and what it said last on standard error."""

    node: str
    code: int
    said: str

    @property
    def words(self) -> str:
        """How and where it ended, and why as far as it said so, in one line."""
        return f"node {self.node} {_how(self.code)}" + (f": {self.said}" if self.said else "")


def _how(code: int) -> str:
    """Return the exit code of a shell in words; above 128 it may be a signal."""
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


@dataclass(frozen=True)
class Result:
    """What became of a job: the exit code, how the nodes ended, the first one first, and what they printed, if it was kept.

    `refused` is srun's last error.
    """

    code: int
    ends: tuple[End, ...] = ()
    printed: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""

    @property
    def cause(self) -> str:
        """How the first node failed that did, or else why srun started none; empty where neither has said."""
        return next((end.words for end in self.ends if end.code), "" if self.ends else self.refused)


@dataclass(frozen=True)
class Job:
    """What the job runs on each node; pickled by submitit. With `keep`, what nodes print is kept, and not passed on."""

    command: tuple[str, ...]
    launcher: tuple[str, ...]  # srun with its options; empty on one machine without Slurm
    place: Path
    token: Path | None = None
    reserve: Path | None = None
    keep: bool = False

    def __call__(self) -> Result:
        """Run it, as a job of Slurm, and return how it ended."""
        environ = local.variables()
        command = [*self.launcher, *self.command]
        if self.token:
            endpoint = f"{program.first_address(os.environ['SLURM_JOB_NODELIST'])}:{port_of(os.environ['SLURM_JOB_ID'])}"
            command += ["--endpoint", endpoint]
            environ["SMOKEHOUSE_TOKEN_FILE"] = str(self.token)
        try:
            if not self.launcher:
                return Result(subprocess.run(command, cwd=self.place, env=environ, check=False).returncode)
            return self._on_nodes(command, environ)
        finally:
            if self.reserve:
                self.reserve.unlink(missing_ok=True)

    def _on_nodes(self, command: Sequence[str], environ: Mapping[str, str]) -> Result:
        names = program.nodes(os.environ["SLURM_JOB_NODELIST"])
        with subprocess.Popen(command, cwd=self.place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            listener = Listener(names, show=None if self.keep else _show)
            for stream, line in _lines(process, lambda: listener.patience):
                listener.hear(stream, line)
            code = _end(process, late=listener.patience == 0.0)
        return listener.result(code)


class Listener:
    """What the nodes of a job say, line by line: `stream` is 1 for standard output, 2 for standard error."""

    def __init__(self, names: Sequence[str], show: "Callable[[int, str], None] | None") -> None:
        """Listen to nodes with these names, in the order of their numbers; pass lines on by `show`, or keep them for None."""
        self._names, self._show = names, show
        self._last = dict.fromkeys(range(len(names)), "")
        self._printed: dict[int, list[str]] = {number: [] for number in range(len(names))}
        self._pieces: dict[tuple[int, int], bytes] = {}
        self._ends: dict[int, End] = {}
        self._until: float | None = None
        self._refused = ""

    @property
    def patience(self) -> float | None:
        """Seconds for which the nodes that still run are waited for; None for any number."""
        return None if self._until is None else max(0.0, self._until - clock.now())

    def hear(self, stream: int, line: bytes) -> None:
        """Take a line of srun's, labelled with the number of its node, or of its own."""
        labelled = _LABELLED.fullmatch(line)
        if not labelled or int(labelled[1]) not in self._last:
            if stream == 2 and line.startswith((b"srun: error: ", b"srun: fatal: ")):
                self._refused = " ".join(line.decode(errors="replace").split())[:1000]
            if self._show:
                self._show(stream, line.decode(errors="replace"))
            return
        number, piece = int(labelled[1]), labelled[2]
        whole = self._pieces.pop((stream, number), b"") + piece
        if len(piece) == _PIECE:
            self._pieces[stream, number] = whole
            return
        text = whole.decode(errors="replace")
        word, _, code = text.partition(" ")
        if word == _ENDED and code.isdecimal():
            self._ends.setdefault(number, End(self._names[number], int(code), self._last[number]))
            if number == 0:  # it supervised the others, which have nothing left to do
                self._until = clock.now() + GRACE
            return
        if stream == 2 and text.strip() and not text.startswith(("slurmstepd: ", "srun: ")):
            self._last[number] = " ".join(text.split())[:1000]
        if self._show is None and stream == 1:
            self._printed[number].append(text)
        elif self._show:
            self._show(stream, f"{self._names[number]}: {text}" if number else text)

    def result(self, code: int) -> Result:
        """Return how the nodes ended; `code` is srun's, which has that of the worst one, but ends with 0 after a lost one."""
        first = self._ends.get(0)
        ends = (*self._ends.values(),)
        code = first.code if first and first.code else code or next((end.code for end in ends if end.code), 0)
        printed = {self._names[number]: "\n".join(lines) for number, lines in self._printed.items()} if not self._show else {}
        lost = len(self._ends) < len(self._names)
        return Result(code or int(lost), ends, printed, self._refused)


def _show(stream: int, line: str) -> None:
    """Pass a line on; a full disk loses it, and no more."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stdout if stream == 1 else sys.stderr, flush=True)


def _lines(process: subprocess.Popen[bytes], patience: Callable[[], float | None]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a process as they come, until it has closed both streams, or patience has run out."""
    streams: dict[int, tuple[IO[bytes], int]] = {}
    with selectors.DefaultSelector() as selector:
        for number, stream in ((1, process.stdout), (2, process.stderr)):
            if stream:
                streams[stream.fileno()] = stream, number
                selector.register(stream, selectors.EVENT_READ)
        rest = dict.fromkeys((1, 2), b"")
        while streams:
            left = patience()
            if left == 0.0:
                return
            for key, _ in selector.select(left):
                stream, number = streams[key.fd]
                chunk = os.read(key.fd, 1 << 16)
                *whole, rest[number] = (rest[number] + chunk).split(b"\n")
                if not chunk:
                    whole, rest[number] = ([rest[number]] if rest[number] else []), b""
                    selector.unregister(stream)
                    del streams[key.fd]
                for line in whole:
                    yield number, line


def _end(process: subprocess.Popen[bytes], *, late: bool) -> int:
    """Return the exit code of srun, which is ended where it does not end by itself: it waits for nodes that are gone."""
    if late:
        process.terminate()
    for end in (process.terminate, process.kill):
        try:
            return process.wait(_KILL)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()
