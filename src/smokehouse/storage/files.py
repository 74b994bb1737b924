"""Write files atomically, link or copy them, and hash them."""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

SHA256 = "[0-9a-f]{64}"  # the regular expression of a hex digest
# Where a name is a descriptor, also one of a regular file.
_DESCRIPTORS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


def write(path: Path, content: bytes | str) -> None:
    """Write `content`, a string as UTF-8, to `path` atomically, creating its folder; raises OSError.

    A device or an open descriptor, such as /dev/stdout, is written to as it is: root could replace it for all programs.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_stream(path):
        with path.open("wb") as stream:
            stream.write(data)
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
        _name_of_unfinished(path).replace(path)


def _is_stream(path: Path) -> bool:
    descriptors = path.is_symlink() and os.path.realpath(path).startswith("/proc/")
    return path.exists() and (path.is_char_device() or descriptors or path.parent in _DESCRIPTORS)


@contextmanager
def _unfinished(path: Path) -> Iterator[IO[bytes]]:
    """Yield an empty file beside `path`, which becomes it; it has one name, so that what a killed call left is used again."""
    name = _name_of_unfinished(path)
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may write it, too
            if not _has_name(file, name):  # that process has finished it meanwhile
                continue
            file.truncate()
            try:
                yield file
            except BaseException:
                name.unlink(missing_ok=True)
                raise
            return


def _has_name(file: IO[bytes], name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.lstat())
    except FileNotFoundError:
        return False


def _name_of_unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def open_regular(path: Path) -> BufferedReader:
    """Open `path` to read it; raises OSError, also for a FIFO or a device, which could block or have no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return os.fdopen(handle, "rb")


def read(path: Path, largest: int = 256 << 20) -> bytes:
    """Return the content of a regular file of at most `largest` bytes; raises OSError, also for any other."""
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"expected at most {largest >> 20} MiB", str(path))
    return data


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `target` to `source`, or copy it where the file system cannot; raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sha256(data: bytes | str) -> str:
    """Return the hex SHA-256 of `data`, a string as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def cache() -> Path:
    """Return the folder for files that may be deleted at any time.

    See: https://specifications.freedesktop.org/basedir-spec
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "smokehouse"


def hashed(path: Path) -> str:
    """Return the hex SHA-256 of the regular file `path`; raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(path: Path, sha256: str) -> bool:
    """Return whether `path` is a file with the hash `sha256`."""
    return path.is_file() and hashed(path) == sha256
