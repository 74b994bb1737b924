"""Starts process groups and ends them: fork, torchrun's agent, exit codes, and no process left behind."""

import contextlib
import ctypes
import multiprocessing.popen_fork
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .outcome import Channel, one_line

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however the parent went (prctl(2))."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(entry: Callable[[Any], None], brief: Any, start_method: str) -> int:
    """Fork a launcher in a session of its own that runs `entry(brief)` in every rank of the brief's job; its process id.

    The caller must have one thread only.
    """
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log_to(brief.logs / brief.job.name / "launcher.log")
        if brief.job.distributed:
            _launch(entry, brief, start_method)
        else:
            entry(brief)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def log_to(file: Path) -> None:
    """Send everything that this process and its libraries print to `file`, or nowhere when the disk has no room for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _launch(entry: Callable[[Any], None], brief: Any, start_method: str) -> None:
    """torchrun's agent with `entry` in each rank. Tells the supervisor every rank's exit code, in the order of deaths."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    channel = Channel(brief.address, {"job": brief.job.name, "rank": None})
    reap = multiprocessing.popen_fork.Popen.poll

    def poll(self: Any, flag: int = os.WNOHANG) -> int | None:
        # The agent names one failure, sometimes the victim's: whoever reaps a rank is the only one to learn its signal.
        before = self.returncode
        code = reap(self, flag)
        if before is None and code is not None:
            channel.send("exit", pid=self.pid, code=code)
        return code

    multiprocessing.popen_fork.Popen.poll = poll  # type: ignore[method-assign]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=brief.job.processes,
        run_id=brief.job.name,
        # One machine needs no election of a host, in which the c10d backend waits for up to 0.3 s by design.
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{brief.port or _free_port()}",
        rdzv_configs={"rank": 0, "timeout": int(brief.timeout)},
        logs_specs=DefaultLogsSpecs(log_dir=str(brief.work / "agent")),  # without it, a folder in /tmp that stays
        local_addr="127.0.0.1",  # without it the agent asks DNS for this machine's name
        start_method=start_method,
        max_restarts=0,
        monitor_interval=0.05,
    )
    try:
        elastic_launch(config, entry)(brief)
    except ChildFailedError:
        pass  # every rank's end was told already
    except Exception as error:
        channel.send("fatal", error=one_line(error))
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def adopt_orphans() -> None:
    """Become the parent of ranks whose launcher is gone, so that `stop` can wait for them too (prctl(2), a child subreaper)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def stop(process: int) -> None:
    """Kill a launcher and its ranks, and wait until the kernel has cleared them away. Harmless where they are gone already."""
    for kill in (os.killpg, os.kill):  # between fork and setsid there is no such group yet
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    for whom in (process, -process):
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(whom, 0)


def ask_for_stack(process: int) -> None:
    """Have a rank's main thread run its SIGUSR1 handler, and wake the rank if it is stopped. Harmless where it is gone already.

    A signal to the process goes to any of its threads, which may look at a main thread that runs on: every other dump was cut.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(ProcessLookupError):
        if hasattr(libc, "tgkill"):  # glibc 2.30 and later
            libc.tgkill(process, process, signal.SIGUSR1)
        else:
            os.kill(process, signal.SIGUSR1)
        os.kill(process, signal.SIGCONT)


def exit_code(process: int) -> int | None:
    """The exit code of a launcher, negative for a signal; None while it runs. It can still be waited for."""
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def state(process: int) -> str:
    """The kernel's letter for what a process is doing (`T`: stopped, `D`: waits for a device, …), empty when it is gone."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def signal_name(code: int) -> str:
    """An exit code as people say it."""
    if code < 0:
        try:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"
