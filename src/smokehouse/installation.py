"""Installations: a lock, put on this machine."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.tags import platform_tags

from smokehouse.bundle import Bundle
from smokehouse.checkout import Checkout
from smokehouse.console import tell
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks import pins as lock
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import refuse_small_disk
from smokehouse.storage.folder_lock import held

MARKER = ".smokehouse.json"

# Measured on qwen2.5-vl: 3.3 GB of files take 6.6 GB with their bytecode.
UNPACKED = 2.0


def ensure(checkout: Checkout, environment: Environment, bundle: Bundle | None = None) -> Path:
    """Return the Python of `environment`, whose pip half is installed from its lock as it lies there now.

    What an earlier call finished is reused as long as the lock is the same, and the `bundle` where there is one.
    Raises UserError when the lock is for another machine, does not match what the index or the bundle has, or does not
    fit on the disk.
    """
    place = lock.environment_lock(checkout, environment.name)
    locked = lock.read(place)
    assert place.build_pins
    folder = checkout.bundled(environment.name) if bundle else checkout.installation(environment.name)
    marker = folder / MARKER
    python = folder / "bin" / "python"
    wanted = {path.name: files.sha256(path.read_bytes()) for path in (place.pins, place.build_pins)}
    if bundle:
        wanted["bundle"] = bundle.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_name(f".{folder.name}.lock"), f"installing {environment.name}") as descriptor:
        if read_marker(folder) == wanted and os.access(python, os.X_OK):
            return python
        refuse_platform(locked.platform, place.name)
        refuse_small_disk(folder.parent, locked.download * UNPACKED, f"install {place.name}")
        if bundle:
            bundle.refuse_edited()
        began = time.monotonic()
        tell(f"installing {environment.name} ({len(locked.versions)} packages)")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv.create_environment(folder, locked.python)
        with emptied(folder.with_name(f".{folder.name}.cache")) as cache:
            alone = uv.Alone(bundle.wheels, cache) if bundle else None
            uv.install(folder, place.pins, place.build_pins, locked.built, alone=alone, keep=[descriptor])
        files.write(marker, json.dumps(wanted, indent=2) + "\n")
        tell(f"installed {environment.name} in {time.monotonic() - began:.0f} s")
    return python


def read_marker(folder: Path) -> object:
    """Return what says that `folder` is a finished installation, None where it is none."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Yield `folder`, which is not there, and remove it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_platform(platform: str, name: str) -> None:
    """Raise UserError when this machine is not of the `platform` that the lock `name` is for."""
    machine, _, libc = platform.partition("-")
    here = list(platform_tags())
    if f"{libc}_{machine}" not in here:
        raise UserError(f"{name}: the lock is for {platform}, this machine is {here[0]}; install it on such a one")
