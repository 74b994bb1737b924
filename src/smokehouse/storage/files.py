"""Write files atomically, link or copy them, and hash them."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO

SHA256 = "[0-9a-f]{64}"  # the regular expression of a hex digest


def write(path: Path, content: bytes | str) -> None:
    """Write `content`, a string as UTF-8, to `path` atomically, creating its folder; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def open_regular(path: Path) -> IO[bytes]:
    """Open `path` to read it; raises OSError, also for a FIFO or a device, which could block or have no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return os.fdopen(handle, "rb")


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
    """Return the hex SHA-256 of the file `path`; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
