"""The folder of a report: for one run at a time, which deletes nothing there that no run wrote."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from smoke_tests import options as options_module
from smoke_tests import report
from smoke_tests.machine.host import node_name
from smoke_tests.options import InputError

LOCK = ".lock"
_KIND = "smoke_tests report folder"  # what a lock file of ours says that it is
_OWN = {LOCK, "logs", "ops", *report.FILES}
_WORK = "work-"
_LONGEST = 4096  # bytes of a lock file
_UNWRITABLE = "give --report a folder that can be written"


@contextlib.contextmanager
def report_folder(folder: Path, partial: str) -> Iterator[Path]:
    """Lock a report folder for this run, and yield a work folder in it that is deleted at the end. Raises InputError.

    `partial` are the options of a run that leaves something out; its report must not replace that of a whole one.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--report {str(folder)!a}: expected UTF-8, which safetensors requires; give another folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open(folder)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {_UNWRITABLE}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{folder}: in use by {_holder(handle)}; wait for it or give another --report") from error
    try:
        options_module.refuse_full_report(folder, partial)  # again, as another run may have ended since
        work = _clean(folder, handle)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {_UNWRITABLE}") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(handle)


def _open(folder: Path) -> int:
    """Open the lock file; raises InputError where the folder has files of others and no lock file of ours."""
    handle = None
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    names = {path.name for path in folder.iterdir() if not re.fullmatch(rf"{_WORK}\w+", path.name)}
    if not (_is_ours(handle, names) if handle is not None else not names):
        if handle is not None:
            os.close(handle)
        found = min(names - _OWN, default=min(names))
        raise InputError(
            f"{folder}: expected an empty or a report folder, found other files ({found}); give --report a new folder"
        )
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644) if handle is None else handle


def _is_ours(handle: int, names: set[str]) -> bool:
    """Return whether a lock file is of a run, in a folder with `names`; earlier releases left it empty, beside a report."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        return False
    if os.fstat(handle).st_size == 0:
        return names == {LOCK} or ("report.json" in names and names <= _OWN)
    return _content(handle).get("kind") == _KIND


def _content(handle: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(handle, _LONGEST, 0))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(handle: int) -> str:
    """Return who has locked a report folder, as its lock file says."""
    content = _content(handle)
    process, host = content.get("process"), content.get("host")
    return f"process {process} on {host}" if isinstance(process, int) and isinstance(host, str) else "another smoke run"


def _clean(folder: Path, handle: int) -> Path:
    """Remove what earlier runs left, and return a new work folder; raises OSError. This run holds the lock."""
    stale = _content(handle).get("work")
    if isinstance(stale, str) and re.fullmatch(rf"{_WORK}\w+", stale):
        shutil.rmtree(folder / stale, ignore_errors=True)
    for name in report.FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir()
    work = folder / f"{_WORK}{secrets.token_hex(8)}"
    text = json.dumps({"kind": _KIND, "process": os.getpid(), "host": node_name(), "work": work.name})
    # Before the folder is there, so that the next run removes what one that is killed leaves. In place, as others wait for it.
    os.pwrite(handle, f"{text}\n".encode().ljust(os.fstat(handle).st_size), 0)
    work.mkdir(mode=0o700)
    return work
