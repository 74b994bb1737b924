"""Run a command in a root file system of its own, without a network, as root of a user namespace: namespace.py SPEC.

It is a program, so that what it changes ends with its process; `run_in` starts it. It imports nothing but the standard library.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# From sched.h, sys/mount.h and sys/prctl.h.
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 0x1, 0x2, 0x4, 0x20, 0x1000, 0x4000, 0x40000
_DETACH = 2
_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)
# Flags that a bind mount must keep when it is made read-only in a user namespace, by their option.
_LOCKED = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": 0x8, "noatime": 0x400, "nodiratime": 0x800, "relatime": 0x200000}

# Exit codes where the namespace cannot be made, and where the program cannot be started in it; standard error has the reason.
FAILED, NOT_STARTED = 125, 127


@dataclass(frozen=True)
class Root:
    """A root file system: folders laid over each other, the topmost first, that are never written to.

    `mounts` has the folder or file at each absolute path; those in `writable` can be written to. `work` is an empty folder.
    """

    layers: Sequence[str]
    mounts: Mapping[str, str]
    writable: Sequence[str]
    work: str


def command(root: Root, program: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the command line that runs `program` in `root` with the variables `environ`."""
    spec = json.dumps({"root": asdict(root), "program": list(program), "environ": dict(environ)})
    return [sys.executable, "-I", "-S", str(Path(__file__)), spec]


def main(spec: str) -> int:
    """Run the program that `spec` describes; return its exit code, FAILED or NOT_STARTED."""
    found = json.loads(spec)
    root = Root(**found["root"])
    try:
        _unshare()
    except OSError as refused:
        return _failed(refused)
    child = os.fork()  # becomes process 1 of its namespace: when it ends, so does everything in it
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _enter(root)
    except OSError as refused:
        os._exit(_failed(refused))
    program = found["program"]
    try:
        os.execve(program[0], program, found["environ"])
    except OSError as refused:
        _failed(refused, program[0])
        os._exit(NOT_STARTED)


def _failed(refused: OSError, what: str = "") -> int:
    print(f"{what or refused.filename or 'namespace'}: {refused.strerror}", file=sys.stderr)
    return FAILED


def _unshare() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _NEWUSER | _NEWNS | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _enter(root: Root) -> None:
    """Make `root` the root of this process, which then sees nothing else."""
    _mount(None, "/", None, _REC | _PRIVATE)
    work = Path(root.work)
    _mount("tmpfs", str(work), "tmpfs", 0, "mode=755")
    below = []
    for number, layer in enumerate(root.layers):
        # Short names, because all of them have to fit in one page.
        _bind(layer, work / str(number), writable=True)
        below.append(str(number))
    top, upper, scratch = work / "root", work / "upper", work / "work"
    for folder in (top, upper, scratch):
        folder.mkdir()
    os.chdir(work)
    _mount("overlay", "root", "overlay", 0, f"lowerdir={':'.join(below)},upperdir=upper,workdir=work,userxattr")
    for device in ("null", "zero", "full", "random", "urandom"):
        _bind(f"/dev/{device}", top / "dev" / device, writable=True)
    for place, source in root.mounts.items():
        _bind(source, top / place.lstrip("/"), writable=place in root.writable)
    _mount("tmpfs", str(_folder(top / "tmp")), "tmpfs", 0, "mode=1777")
    with suppress(OSError):  # inside a container parts of /proc are hidden, and then a new one is refused; no step needs it
        _mount("proc", str(_folder(top / "proc")), "proc", _NOSUID | _NODEV)
    os.chdir(top)
    if _libc.syscall(_SYS_PIVOT_ROOT, b".", b"."):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pivot_root")
    _call("umount2", b".", _DETACH)  # the old root, which lies on the new one
    os.chdir("/")
    os.umask(0o022)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _bind(source: str, place: Path, *, writable: bool) -> None:
    if Path(source).is_dir():
        _folder(place)
    else:
        _folder(place.parent)
        place.touch()
    _mount(source, str(place), None, _BIND | _REC)
    if not writable:
        kept = sum(flag for name, flag in _LOCKED.items() if name in _options(str(place)))
        _mount(None, str(place), None, _BIND | _REMOUNT | _RDONLY | kept)


def _options(place: str) -> list[str]:
    """Return the options of the mount at `place`."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields = line.split(" ")
        if fields[4].encode().decode("unicode_escape") == place:
            return fields[5].split(",")
    return []


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _mount(source: str | None, place: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if text is None else os.fsencode(text) for text in (source, place, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"mount {place}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
