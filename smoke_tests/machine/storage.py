"""Folders of caches, disk space and inodes: written by every rank, and best not on a network file system."""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine import places
from smoke_tests.machine.finding import Finding, Level, ok
from smoke_tests.machine.ops import extensions

# Types of file systems that other machines serve; what is compiled there is slow, and its locks may not hold.
_NETWORK = re.compile(r"nfs\d?|cifs|smb3|lustre|gpfs|beegfs|ceph|afs|9p|glusterfs|wekafs|panfs|fuse\.(?!overlayfs|lxcfs).+")
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Bytes: the weights of the smallest model of the environments are 4.4 GB in bf16, and compiled kernels take some MB.
NEEDED = {"HF_HOME": 10 << 30, "TRITON_CACHE_DIR": 1 << 30, "TORCH_EXTENSIONS_DIR": 1 << 30, "TMPDIR": 1 << 30}


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, its type, and its options."""

    place: Path
    type: str
    options: frozenset[str]

    @property
    def network(self) -> bool:
        """Whether another machine serves it."""
        return _NETWORK.fullmatch(self.type) is not None


def mounts() -> list[Mount]:
    """Return what is mounted, in the kernel's order. See: proc(5), /proc/PID/mountinfo."""
    found = []
    try:
        lines = (places.proc() / "self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        fields, _, after = line.partition(" - ")
        parts = fields.split()
        if len(parts) > 5 and after:
            place = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), parts[4])
            options = frozenset([*parts[5].split(","), *after.split()[-1].split(",")])
            found.append(Mount(Path(place), after.split()[0], options))
    return found


def mount_of(path: Path, mounted: list[Mount]) -> Mount | None:
    """Return the file system that `path` is on: the deepest one, and of two in one place the later, which hides the first."""
    resolved = path.resolve()
    return max(
        (one for one in mounted if resolved.is_relative_to(one.place)), key=lambda one: len(one.place.parts), default=None
    )


def folders() -> dict[str, Path]:
    """Return the folders that a training run writes to: variable -> the folder that it, or its default, specifies."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or places.home() / ".cache")
    triton = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME") or places.home(), ".triton", "cache")
    return {
        "HF_HOME": Path(os.environ.get("HF_HOME") or cache / "huggingface"),
        "TRITON_CACHE_DIR": Path(triton),
        "TORCH_EXTENSIONS_DIR": extensions(),
        "TMPDIR": Path(os.environ.get("TMPDIR", "/tmp")),  # noqa: S108 - it is asked about, not written to
    }


def check(*, gpu: bool, container: bool) -> Iterator[Finding]:
    """Yield what is wrong with the folders of caches. Nothing is written to them."""
    mounted = mounts()
    for name, folder in folders().items():
        yield from _folder(name, folder, mounted, gpu=gpu, container=container)


def _existing(folder: Path) -> Path:
    """Return the folder, or the deepest of those above it that exists; raises OSError where that cannot be known."""
    for path in (folder, *folder.parents):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise FileNotFoundError(errno.ENOENT, f"{path} is a link to nothing") from None
            continue
        return path
    raise AssertionError("/ exists")


def _folder(name: str, folder: Path, mounted: list[Mount], *, gpu: bool, container: bool) -> Iterator[Finding]:
    compiles = name in ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
    other = f"set {name} to a writable folder on a local disk" + (", such as a mounted volume" if container else "")
    level: Level = "fail" if compiles and gpu else "warn"
    try:
        existing = _existing(folder.absolute())
    except OSError as error:  # another user's, or of a server that is gone
        yield Finding(level, f"{folder} cannot be used: {error.strerror}", name, other)
        return
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        if name == "HF_HOME" and os.environ.get("HF_HUB_OFFLINE") == "1" and folder.is_dir():
            yield ok(name, f"{folder}, read-only, and the hub is offline")
            return
        yield Finding(level, f"{folder} is not writable", name, other)
        return
    mount = mount_of(existing, mounted)
    if compiles and mount and mount.network:
        what = f"{folder} is on {mount.type}, where several nodes compile into one folder and wait for its locks"
        yield Finding("warn", what, name, other)
    if compiles and mount and "noexec" in mount.options:
        yield Finding("warn", f"{folder} is mounted noexec, so what is compiled there cannot be loaded", name, other)
    usage = os.statvfs(existing)
    free = usage.f_bavail * usage.f_frsize
    if usage.f_files and not usage.f_favail:
        yield Finding("fail", f"{folder}: no inode is free", name, f"delete files there, or {other}")
    elif free < NEEDED[name]:
        what = f"{folder}: {free >> 20} MiB free, {NEEDED[name] >> 20} MiB may be needed"
        yield Finding("fail" if free < 64 << 20 else "warn", what, name, f"free disk space, or {other}")
    else:
        yield ok(name, f"{folder}, {free >> 30} GiB free{f' on {mount.type}' if mount else ''}")
