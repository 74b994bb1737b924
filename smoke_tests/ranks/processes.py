"""Start process groups and end them: fork, torchrun's agent, exit codes, and no process left behind."""

import contextlib
import ctypes
import multiprocessing.popen_fork
import os
import pickle
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from smoke_tests.outcome import one_line
from smoke_tests.ranks import transport
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Channel, Exit, Fatal

# The program of a launcher that begins with an exec; its arguments are the supervisor's ID, a file, and where this package is.
# The supervisor may be gone before the launcher asks to be killed with it.
_FRESH = """
import os, pickle, sys
parent, file, place = sys.argv[1:]
sys.path.insert(0, place)
from smoke_tests.ranks import processes
processes.die_with_parent()
if os.getppid() != int(parent):
    sys.exit(1)
with open(file, "rb") as brief:
    processes.run_launcher(*pickle.load(brief), "spawn")
"""
# Seconds in which a killed process is gone, unless a driver holds it.
STOP_PATIENCE = 10.0
# What the C++ runtime prints when gloo or torch's NCCL process group throws in a thread of its own, which ends the process.
# The signal does not show it: an abort may have any cause, and Python's dump of the threads after it may itself end in SIGSEGV.
_COLLECTIVE_ERROR = re.compile(
    rb"^terminate called after throwing an instance of '(gloo::\w+|c10::DistBackendError)'", re.MULTILINE
)
# The dump of the threads, which follows it in the log, is shorter.
_LOG_END = 1 << 20
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however the parent ended. See: prctl(2)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(entry: Callable[[Brief], None], brief: Brief, start_method: str, forget: Callable[[], None] = lambda: None) -> int:
    """Start a launcher in its own session that runs `entry(brief)` in every rank of the brief's job, and return its process id.

    With the start method `spawn`, launcher and ranks begin with an exec and import everything themselves, as CUDA requires.
    With `fork` they share what this process has imported; it must have one thread only. `forget` closes what only this process
    may write to: whoever inherits it could speak for it.
    """
    if start_method == "spawn":
        return _start_fresh(entry, brief)
    process = os.fork()
    if not process:
        os.setsid()
        signal.set_wakeup_fd(-1)
        forget()
        run_launcher(entry, brief, start_method)
    return process


def _start_fresh(entry: Callable[[Brief], None], brief: Brief) -> int:
    """Start a Python that reads `entry` and `brief` from a file, and runs `run_launcher`."""
    file = brief.workspace.brief(f"{brief.job.name}-fresh{brief.node}")
    file.write_bytes(pickle.dumps((entry, brief)))
    arguments = [sys.executable, "-c", _FRESH, str(os.getpid()), str(file), str(Path(__file__).parents[2])]
    return os.posix_spawn(sys.executable, arguments, os.environ, setsid=True)


def run_launcher(entry: Callable[[Brief], None], brief: Brief, start_method: str) -> NoReturn:
    """Run `entry(brief)` in every rank of the brief's job, from this process, and exit."""
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        log_to(brief.logs / brief.job.name / launcher_log(brief.node))
        if brief.job.distributed:
            _launch(entry, brief, start_method)
        else:
            transport.leave_to_ranks(brief.node)  # this process is the rank itself
            entry(brief)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def log_to(file: Path) -> None:
    """Redirect what this process and its libraries print to `file`, or to nowhere when the file cannot be created."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _launch(entry: Callable[[Brief], None], brief: Brief, start_method: str) -> None:
    """Run torchrun's agent with `entry` in each rank, and report every rank's exit code in the order of deaths."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    channel = Channel(brief.address, brief.job.name, None, node=brief.node)
    # Only this process may speak as a launcher: neither by its connection, which a fork inherits, nor by another.
    os.register_at_fork(after_in_child=lambda: transport.close(channel.socket))
    transport.leave_to_ranks(brief.node)
    reap = multiprocessing.popen_fork.Popen.poll

    def poll(self: Any, flag: int = os.WNOHANG) -> int | None:
        # The agent reports one failure, sometimes the victim's, and only the process that reaps a rank learns its signal.
        before = self.returncode
        code = reap(self, flag)
        if before is None and code is not None:
            channel.send(Exit(self.pid, code))
        return code

    multiprocessing.popen_fork.Popen.poll = poll  # type: ignore[method-assign]
    config = LaunchConfig(
        min_nodes=brief.nodes_of_job,
        max_nodes=brief.nodes_of_job,
        nproc_per_node=brief.job.processes // brief.nodes_of_job,
        run_id=brief.job.name,
        **_rendezvous(brief),
        logs_specs=DefaultLogsSpecs(log_dir=str(brief.workspace.agent_logs)),  # the default is a folder in /tmp that stays
        local_addr=brief.host,  # by default the agent asks DNS for this machine's name
        start_method=start_method,
        max_restarts=0,
        monitor_interval=0.05,
    )
    try:
        elastic_launch(config, entry)(brief)
    except ChildFailedError:
        pass  # every rank's end was reported by `poll`
    except Exception as error:
        channel.send(Fatal(one_line(error)))
        raise


def _rendezvous(brief: Brief) -> dict[str, Any]:
    """Return where and how the launchers of a job's nodes meet."""
    if brief.nodes_of_job == 1:
        # One machine needs no election of a host, for which the c10d backend waits up to 0.3 s by design.
        endpoint = f"127.0.0.1:{brief.port or free_port('127.0.0.1')}"
        return {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "rdzv_configs": {"rank": 0, "timeout": int(brief.timeout)}}
    # By default the backend compares names of machines to find out who is the host, and one machine may have several.
    configs = {"is_host": brief.node == 0, "join_timeout": int(brief.timeout), "timeout": int(brief.timeout)}
    return {"rdzv_backend": "c10d", "rdzv_endpoint": brief.rendezvous, "rdzv_configs": configs}


def launcher_log(node: int) -> str:
    """Return the name of the log of a job's launcher on a node."""
    return f"launcher-node{node}.log" if node else "launcher.log"


def free_port(host: str) -> int:
    """Return a port of this machine's address `host` that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def adopt_orphans() -> None:
    """Become the parent of ranks whose launcher is gone, so that `stop` can reap them too. See: prctl(2), child subreaper."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def stop(process: int, patience: float = STOP_PATIENCE) -> bool:
    """Kill a launcher and its ranks, and reap them; whether all are gone after `patience` seconds.

    A process that waits in a driver (state `D`) does not die before the driver answers, and must not hold up the run.
    """
    for kill in (os.killpg, os.kill):  # between fork and setsid there is no such group yet
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    deadline = time.monotonic() + patience
    launcher, ranks = _reap(process, deadline), _reap(-process, deadline)
    return launcher and ranks


def _reap(target: int, deadline: float) -> bool:
    """Reap a process or, by a negative id, those of a group; whether none is left at the deadline."""
    with contextlib.suppress(ChildProcessError):
        while True:
            reaped, _ = os.waitpid(target, os.WNOHANG)
            if not reaped:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.005)  # no call waits for a child with a limit
    return True


def stop_children(patience: float = STOP_PATIENCE) -> bool:
    """Kill and reap all that is left of this process's children; whether all are gone after `patience` seconds.

    Orphans are among them, such as the compilers of a rank that ended, which lead process groups of their own.
    """
    deadline = time.monotonic() + patience
    while children := [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if not _reap(child, deadline):
                return False
    return True


def request_stack(process: int) -> None:
    """Have a rank's main thread run its SIGUSR1 handler, and wake the rank if it is stopped. Does nothing where it is gone.

    A signal to the process is handled by any of its threads, which may dump a main thread that runs on and cut the dump.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(ProcessLookupError):
        if hasattr(libc, "tgkill"):  # glibc 2.30 and later
            libc.tgkill(process, process, signal.SIGUSR1)
        else:
            os.kill(process, signal.SIGUSR1)
        os.kill(process, signal.SIGCONT)


def exit_code(process: int) -> int | None:
    """Return the exit code of a launcher, negative for a signal, or None while it runs. It stays waitable."""
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def parent(process: int) -> int:
    """Return the parent of a process, 0 where it is gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def state(process: int) -> str:
    """Return the kernel's letter for a process state (`T`: stopped, `D`: waits for a device, …), empty when it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def collective_error(log: Path) -> str:
    """Return the class of the error that gloo or NCCL ended a process with, by the end of its log; empty where none did."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_END))
            found = _COLLECTIVE_ERROR.search(stream.read(_LOG_END))
    except OSError:
        return ""
    return found[1].decode() if found else ""


def signal_name(code: int) -> str:
    """Return an exit code in words."""
    if code < 0:
        try:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"
