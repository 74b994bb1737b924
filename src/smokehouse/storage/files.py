"""Write files atomically, link or copy them, and hash them."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

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
