"""Installations: a lock, put on this machine."""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.tags import platform_tags

from smokehouse import files, lock, uv
from smokehouse.environment import Environment
from smokehouse.errors import UserError
from smokehouse.house import House

_MARKER = ".smokehouse.json"
_PATIENCE = 2 * 3600.0  # seconds to wait for another process that installs the same environment

# Measured on qwen2.5-vl: 3.3 GB of files take 6.6 GB with their bytecode.
_UNPACKED = 2.0


def ensure(house: House, environment: Environment) -> Path:
    """Return the Python of `environment`, installed from its lock as it lies there now.

    What an earlier call finished is reused as long as the lock is the same. Raises UserError when the lock is for
    another machine, does not match what the index serves, or does not fit on the disk.
    """
    place = lock.environment_lock(house, environment.name)
    locked = lock.read(place)
    assert place.build_pins
    folder = house.installation(environment.name)
    marker = folder / _MARKER
    python = folder / "bin" / "python"
    wanted = {path.name: files.sha256(path.read_bytes()) for path in (place.pins, place.build_pins)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _held(folder.with_name(f".{folder.name}.lock"), environment.name) as descriptor:
        if _read(marker) == wanted and os.access(python, os.X_OK):
            return python
        _refuse_unfit(locked, place.name, folder.parent)
        began = time.monotonic()
        _tell(f"installing {environment.name} ({len(locked.versions)} packages)")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv.create_environment(folder, locked.python)
        uv.install(folder, place.pins, place.build_pins, locked.built, keep=[descriptor])
        files.write(marker, json.dumps(wanted, indent=2) + "\n")
        _tell(f"installed {environment.name} in {time.monotonic() - began:.0f} s")
    return python


def _read(marker: Path) -> object:
    try:
        return json.loads(marker.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _held(path: Path, name: str) -> Iterator[int]:
    """Hold the right to install `name`, waiting for whoever holds it."""
    with path.open("a+") as file:
        until = time.monotonic() + _PATIENCE
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text().strip() or "another process"
                if time.monotonic() > until:
                    raise UserError(f"{name}: {holder} is installing it without end; look at it or end it") from None
                if not told:
                    _tell(f"waiting for {holder}, which is installing {name}")
                    told = True
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()


def _refuse_unfit(locked: lock.Lock, name: str, folder: Path) -> None:
    """Raise UserError when this machine cannot take what is locked."""
    machine, _, libc = locked.platform.partition("-")
    here = list(platform_tags())
    if f"{libc}_{machine}" not in here:
        raise UserError(f"{name}: the lock is for {locked.platform}, this machine is {here[0]}; install it on such a one")
    free = shutil.disk_usage(folder).free
    need = locked.download * _UNPACKED
    if free < need:
        raise UserError(f"{folder}: {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB needed to install {name}; free some space")


def _tell(message: str) -> None:
    print(f"smokehouse: {message}", file=sys.stderr, flush=True)
