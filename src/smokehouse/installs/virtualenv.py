"""Installations: a lock, put on this machine."""

import json
import os
import shutil
import time
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.environments.definition import Environment
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.target import MARKER, UNPACKED, emptied, read_marker, refuse_platform
from smokehouse.locks import pins as lock
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive


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
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"installing {environment.name}") as descriptor:
        if read_marker(folder) == wanted and os.access(python, os.X_OK):
            return python
        refuse_platform(locked.platform, place.name)
        require_free_space(folder.parent, locked.download * UNPACKED, f"install {place.name}")
        if bundle:
            bundle.refuse_edited()
        began = time.monotonic()
        status(f"installing {environment.name} ({len(locked.versions)} packages)")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv.create_environment(folder, locked.python)
        with emptied(folder.with_name(f".{folder.name}.cache")) as cache:
            offline = uv.Offline(bundle.wheels, cache) if bundle else None
            uv.install(folder, place.pins, place.build_pins, locked.built, offline=offline, pass_fds=[descriptor])
        files.write(marker, json.dumps(wanted, indent=2) + "\n")
        status(f"installed {environment.name} in {time.monotonic() - began:.0f} s")
    return python
