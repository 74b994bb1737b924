#!/usr/bin/env python3
"""A real Slurm on this machine: slurm_cluster.py start FOLDER | stop FOLDER. Needs root, and Debian's slurmctld, slurmd, munge.

One controller and three nodes, n1 to n3, each a slurmd with a port of its own on 127.0.0.1, all in FOLDER. Commands of Slurm
use it with SLURM_CONF=FOLDER/slurm.conf. It is in the foreground of nobody: `stop` ends it by the process ids in FOLDER.
"""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n1", "n2", "n3")
DEADLINE = 180.0  # seconds for anything that the cluster is waited for; on an idle machine it takes a few
_CONF = """\
ClusterName=smokehouse
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
# A job's number makes its port, and clusters of other tests may run on this machine, too.
FirstJobId={job}
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits for as long as its credentials last, 120 s by default; 5 and less are invalid.
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
SlurmdParameters=config_overrides
# All as short as Slurm allows, as tests wait for it.
SlurmdTimeout=5
KillWait=3
InactiveLimit=0
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,nohold_on_prolog_fail
{more}
NodeName=n[1-3] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=16 RealMemory=1000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
"""


class Cluster:
    """A Slurm in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self, more: Sequence[str] = ()) -> None:
        """Start munge, the controller and all nodes, with `more` lines in slurm.conf; return when all nodes are idle."""
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise SystemExit(f"slurm: expected {', '.join(PROGRAMS)}, found no {', '.join(missing)}; run: .ci/install-slurm")
        if os.geteuid():
            raise SystemExit(f"slurm: expected root, which starts jobs as their users, found user {os.geteuid()}; use sudo")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(32))
        key.chmod(0o600)
        (controller, first), job = _free_ports(), secrets.randbelow(1_000_000) + 1
        text = _CONF.format(
            folder=self.folder, controller=controller, first=first, last=first + 2, job=job, more="\n".join(more)
        )
        (self.folder / "slurm.conf").write_text(text)
        for number in range(8):  # Slurm counts the files of devices, whatever they are
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-3] Name=gpu File={self.folder}/gpu[0-7]\n")
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munge.seed"
        self.run("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items()))
        self.run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_until(lambda: self.run("sinfo", "-h", "-o", "%t").split() == ["idle"], "all nodes are idle")

    def start_node(self, node: str, mounts: Mapping[Path, Path] | None = None) -> None:
        """Start a node's slurmd, for whose jobs each file or folder of `mounts` lies at the place that it is mapped to."""
        command = ["slurmd", "-N", node]
        if mounts:
            bound = " && ".join(shlex.join(["mount", "--bind", str(what), str(place)]) for what, place in mounts.items())
            command = ["unshare", "--mount", "sh", "-c", f"{bound} && exec {shlex.join(command)}"]
        self.run(*command)

    def run(self, *command: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a command of Slurm, which has to succeed, and return its standard output."""
        ended = subprocess.run(
            command,
            env=self.environ | dict(environ or {}),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            cwd=self.folder,
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {ended.returncode}: {ended.stderr}{ended.stdout}")
        return ended.stdout

    def wait_until(self, condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
        """Ask again until `condition` holds; Slurm has no command that waits for it."""
        until = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"slurm: expected that {what} within {deadline:.0f} s; {self.said()}")
            time.sleep(0.2)

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """Return a field of what scontrol says of a job."""
        words = self.run("scontrol", "show", "job", job, "-o").split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def nodes(self, job: str) -> list[str]:
        """Return the nodes that a job was given, in the order of their numbers."""
        return self.run("scontrol", "show", "hostnames", self.field(job, "NodeList")).split()

    def processes(self, node: str) -> list[int]:
        """Return the processes of a node: its slurmd, and what that has started."""
        file = self.folder / f"slurmd-{node}.pid"
        first = [int(file.read_text())] if file.exists() else []
        first = [pid for pid in first if "slurmd" in _command(pid)]  # the file of one that was killed stays
        found = [pid for pid in _processes() if _environ(pid).get("SLURMD_NODENAME") == node and self._ours(pid)]
        steps = [pid for pid in _processes() if _command(pid).startswith("slurmstepd") and _parent(pid) in first]
        return list(dict.fromkeys([*first, *steps, *found]))

    def _ours(self, pid: int) -> bool:
        return _environ(pid).get("SLURM_CONF") == self.environ["SLURM_CONF"]

    def batch_script(self, job: str) -> int:
        """Return the process of a job's batch script."""
        found = [pid for pid in _processes() if _environ(pid).get("SLURM_JOB_ID") == job and self._ours(pid)]
        [script] = [pid for pid in found if "/slurm_script " in _command(pid)]
        return script

    def kill_node(self, node: str) -> None:
        """Kill all of a node at once, as a power cut does."""
        until = time.monotonic() + DEADLINE
        while found := self._all_of(node):  # again, as one that was not killed yet may have started another
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                raise RuntimeError(f"slurm: expected that all of {node} is killed, found {[_command(pid) for pid in found]}")

    def _all_of(self, node: str) -> list[int]:
        orphans = [pid for pid in _processes() if _command(pid).startswith("slurmstepd") and self._step_of(pid, node)]
        return list(dict.fromkeys([*self.processes(node), *orphans]))

    def _step_of(self, pid: int, node: str) -> bool:
        """Whether a slurmstepd whose slurmd has gone is of this cluster, and not of another one on this machine."""
        children = Path(f"/proc/{pid}/task/{pid}/children")
        with contextlib.suppress(OSError):
            found = [int(child) for child in children.read_text().split()]
            return any(_environ(child).get("SLURMD_NODENAME") == node and self._ours(child) for child in found)
        return False

    def left(self) -> list[str]:
        """Return the command lines of processes that jobs have left."""
        return [_command(pid) for pid in _processes() if "SLURM_JOB_ID" in _environ(pid) and self._ours(pid)]

    def said(self) -> str:
        """Return the ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {' / '.join(log.read_text(errors='replace').splitlines()[-5:])}" for log in logs)

    def stop(self) -> None:
        """End the cluster and all of its jobs."""
        for node in NODES:
            self.kill_node(node)
        for pid in (pid for pid in _processes() if "SLURM_JOB_ID" in _environ(pid) and self._ours(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in ("slurmctld.pid", "munged.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / name).read_text()), signal.SIGKILL)


def _free_ports() -> tuple[int, int]:
    """Return a free port, and the first of three that are."""
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(socket.socket())
        probe.bind(("127.0.0.1", 0))
        for first in range(36800, 60000, 3):
            try:
                for port in range(first, first + 3):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return int(probe.getsockname()[1]), first
    raise SystemExit("slurm: expected three free ports in a row, found none")


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _environ(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in content.split("\0") if "=" in line)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit("usage: slurm_cluster.py start|stop FOLDER")
    cluster = Cluster(Path(sys.argv[2]).absolute())
    if sys.argv[1] == "start":
        cluster.start()
        print(f"export SLURM_CONF={cluster.environ['SLURM_CONF']}")
    else:
        cluster.stop()
