"""What a control group allows: memory, processes and CPU time of a container or a job."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine import places
from smoke_tests.machine.finding import Finding, ok

# Of one rank: processes and threads (NCCL, data loaders, compilers), of which the least run nothing else, and bytes.
_THREADS, _FEWEST_THREADS = 512, 64
_MEMORY = 2 << 30
_UNLIMITED = 1 << 60  # version 1 says "no limit" with a number of this size


@dataclass(frozen=True)
class Limits:
    """What is left of a control group's memory (bytes) and processes, and the CPUs that it may use; None for no limit."""

    memory: int | None
    processes: int | None
    cpus: float | None


def read() -> Limits:
    """Return the tightest limits of this process's control groups and those above them, of version 1 or 2."""
    memory: list[int] = []
    processes: list[int] = []
    cpus: list[float] = []
    for controllers, group in _groups():
        unified = controllers == ""
        for folder in group:
            if unified or "memory" in controllers.split(","):
                names = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
                memory += _left(folder, *names)
            if unified or "pids" in controllers.split(","):
                processes += _left(folder, "pids.max", "pids.current")
            if unified or "cpu" in controllers.split(","):
                cpus += _cpus(folder, unified=unified)
    return Limits(min(memory, default=None), min(processes, default=None), min(cpus, default=None))


def _groups() -> Iterator[tuple[str, list[Path]]]:
    """Yield the controllers of each hierarchy, "" for version 2, and the folders from this process's group to the top."""
    root = places.system() / "fs/cgroup"
    try:
        lines = (places.proc() / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        tops = [root / controllers, root / controllers.removeprefix("name=")] if controllers else [root, root / "unified"]
        for top in tops:
            own = top / group.lstrip("/")
            # In a container the kernel may name the host's group, and show the container's as the top.
            inside = [folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir()]
            if inside:
                yield controllers, inside


def _left(folder: Path, most: str, used: str) -> list[int]:
    limit, current = _number(folder / most), _number(folder / used)
    if limit is None or current is None or limit >= _UNLIMITED:
        return []
    return [max(limit - current + (_reclaimable(folder) if most.startswith("memory") else 0), 0)]


def _reclaimable(folder: Path) -> int:
    """Return the bytes of files in the cache that the kernel gives back before it ends a process."""
    try:
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _cpus(folder: Path, *, unified: bool) -> list[float]:
    try:
        if unified:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None


def check(ranks: int | None, *, container: bool) -> Iterator[Finding]:
    """Yield whether the control group has room for `ranks` processes, None for one."""
    limits, count = read(), ranks or 1
    where = "control group"
    raised = "raise the container's limit" if container else "request more for the job"
    if limits.memory is not None and limits.memory < count * _MEMORY:
        what = f"{limits.memory >> 20} MiB of memory left, {count} ranks need {count * _MEMORY >> 20} MiB or more"
        yield Finding("warn", what, where, f"{raised} (memory), or run fewer ranks")
    if limits.processes is not None and limits.processes < count * _THREADS:
        level = "fail" if limits.processes < count * _FEWEST_THREADS else "warn"
        what = f"{limits.processes} processes and threads left, {count} ranks may need {count * _THREADS}"
        yield Finding("fail" if level == "fail" else "warn", what, where, f"{raised} (--pids-limit, podPidsLimit, pids.max)")
    cpus = min(float(len(os.sched_getaffinity(0))), limits.cpus or sys.maxsize)
    if cpus < count:
        what = f"{cpus:g} CPUs for {count} ranks, so that ranks wait for each other"
        yield Finding("warn", what, where, f"{raised} (CPUs)")
    memory = "all" if limits.memory is None else f"{limits.memory >> 20} MiB"
    threads = "any number of" if limits.processes is None else str(limits.processes)
    yield ok(where, f"{memory} of the memory, {threads} processes, {cpus:g} CPUs left")
