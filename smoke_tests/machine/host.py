"""What processes of one training run share on a machine: shared memory, loopback, limits, /tmp."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from smoke_tests.machine.finding import Finding, Level, ok

# Bytes of /dev/shm: what NCCL creates for each rank of a machine (9.6 MB seen with NCCL 2.21.5), and what it and the workers
# of a DataLoader need together. Docker's default is 64 MiB. See: NCCL's troubleshooting, shared memory.
SHARED_PER_RANK = 16 << 20
SHARED = 1 << 30
# Open files: fewer end a smoke run, or a training run with DataLoader workers.
FILES, FILES_OF_TRAINING = 256, 4096
# Bytes of the largest file of a smoke run, and of a checkpoint in training.
FILE_SIZE, FILE_SIZE_OF_TRAINING = 256 << 20, 1 << 40
_CONNECT_DEADLINE = 5.0  # seconds
_OF_SLURM = "SLURMD_NODENAME"


def node_name() -> str:
    """Return what this machine is called: in a job of Slurm as Slurm calls it, which --exclude and scontrol take."""
    return os.environ.get(_OF_SLURM) or socket.gethostname()


def shared_memory(ranks: int | None, *, container: bool, training: bool, folder: str = "/dev/shm") -> Finding:  # noqa: S108 - it is asked about
    """Return whether `ranks` GPU processes, None for none, fit into shared memory, and in `training` data loaders, too."""
    fix = "start with --shm-size 2g or --ipc host" if container else f"run mount -o remount,size=2g {folder}"
    try:
        mounted = os.statvfs(folder)
    except OSError as error:
        return Finding("fail", f"not usable ({error.strerror})", folder, "mount a tmpfs there")
    free, size = mounted.f_bavail * mounted.f_frsize, mounted.f_blocks * mounted.f_frsize
    if not os.access(folder, os.W_OK):
        return Finding("fail", "not writable, so neither NCCL nor Python's locks work", folder, "mount it read-write")
    if ranks and ranks > 1 and free < ranks * SHARED_PER_RANK and os.environ.get("NCCL_SHM_DISABLE") != "1":
        needed = f"{ranks} ranks of NCCL need {ranks * SHARED_PER_RANK >> 20} MiB"
        return Finding("fail", f"{free >> 20} MiB free, {needed}", folder, f"delete what is left there, or {fix}")
    if size < SHARED:
        level: Level = "fail" if training else "warn"
        return Finding(level, f"{size >> 20} MiB, NCCL and data loaders need {SHARED >> 20} MiB", folder, fix)
    if free < SHARED:
        what = f"{free >> 20} MiB of {size >> 20} MiB free, NCCL and data loaders need {SHARED >> 20} MiB"
        return Finding("warn", what, folder, "delete what ended processes left there")
    return ok(folder, f"{size >> 20} MiB, {free >> 20} MiB free")


def loopback() -> Finding:
    """Return whether processes of this machine reach each other over 127.0.0.1."""
    try:
        with socket.socket() as listener, socket.socket() as client:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client.settimeout(_CONNECT_DEADLINE)
            client.connect(listener.getsockname())
    except OSError as error:
        fix = "run ip link set lo up as root; a container needs a network namespace with lo (--network none has it)"
        return Finding("fail", f"cannot be connected to ({error.strerror or error})", "127.0.0.1", fix)
    return ok("127.0.0.1", "reachable")


def processes(folder: Path = Path("/proc")) -> Finding:
    """Return whether processes can be looked at, as torch, a smoke run and every profiler do."""
    if not (folder / "self" / "stat").exists():
        fix = f"run mount -t proc proc {folder}"
        return Finding("fail", "not mounted, so that no process can be looked at", str(folder), fix)
    return ok(str(folder), "mounted")


def limits(*, container: bool, training: bool) -> Iterator[Finding]:
    """Yield the limits of this process; those that only `training` across machines needs if asked for."""
    how = (lambda flag, _: f"start with --ulimit {flag}") if container else (lambda _, command: f"run {command} first")
    yield _limit(resource.RLIMIT_NOFILE, "open files", FILES, FILES_OF_TRAINING, how("nofile=1048576", "ulimit -n 65536"))
    yield _limit(resource.RLIMIT_FSIZE, "file size", FILE_SIZE, FILE_SIZE_OF_TRAINING, how("fsize=-1", "ulimit -f unlimited"))
    if training:
        yield _limit(resource.RLIMIT_STACK, "stack", 0, 8 << 20, how("stack=67108864", "ulimit -s 65536"))
        fix = "InfiniBand needs --ulimit memlock=-1" if container else "InfiniBand needs ulimit -l unlimited"
        yield _limit(resource.RLIMIT_MEMLOCK, "memlock", 0, 1 << 36, fix)


def _limit(which: int, name: str, least: int, usual: int, fix: str) -> Finding:
    """Compare a soft limit with the least that works at all, and with what is usually needed."""
    soft, _ = resource.getrlimit(which)
    if soft == resource.RLIM_INFINITY:
        return ok(f"limit of {name}", "unlimited")
    if soft < usual:
        return Finding("fail" if soft < least else "warn", f"{soft}, expected {usual} or more", f"limit of {name}", fix)
    return ok(f"limit of {name}", str(soft))


def temporary(*, container: bool) -> Finding:
    """Return whether programs can write temporary files and run what they compile there, as triton does."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - it is asked about, not written to
    fix = "start with --tmpfs /tmp:exec" if container else "fix its permissions, or set TMPDIR"
    if not os.access(folder, os.W_OK):
        return Finding("fail", "not writable", str(folder), fix)
    with contextlib.suppress(OSError):
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return Finding("warn", "mounted noexec, so what triton compiles there cannot be loaded", str(folder), fix)
    return ok(str(folder), "writable")
