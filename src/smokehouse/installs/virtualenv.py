"""Installations: a lock, put on this machine."""

import json
import os
import shutil
import time
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.target import MARKER, UNPACKED, emptied, read_marker, refuse_platform
from smokehouse.locks.check import LockedEnvironment
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive


def ensure(checkout: Checkout, locked: LockedEnvironment, bundle: Bundle | None = None) -> Path:
    """Return the Python of an environment, whose PyPI packages are installed from its lock as it lies there now.

    What an earlier call finished is reused as long as the lock is the same, and the `bundle` where there is one.
    Raises UserError when the lock is for another machine, does not match what the index or the bundle has, or does not
    fit on the disk.
    """
    name, lock, place = locked.name, locked.lock, locked.files
    folder = checkout.bundled(name) if bundle else checkout.installation(name)
    marker = folder / MARKER
    python = folder / "bin" / "python"
    wanted = {path.name: files.sha256(path.read_bytes()) for path in (place.pins.path, place.build_pins)}
    if bundle:
        wanted["bundle"] = bundle.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"installing {name}") as descriptor:
        if read_marker(folder) == wanted and os.access(python, os.X_OK):
            return python
        refuse_platform(lock.platform, place.pins.name)
        size = sum(file.size for file in (*lock.pip, *lock.build))
        require_free_space(folder.parent, size * UNPACKED, f"install {place.pins.name}")
        if bundle:
            bundle.verify()
        began = time.monotonic()
        status(f"installing {name} ({len(lock.pip)} packages)")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv.create_environment(folder, lock.python)
        with emptied(folder.with_name(f".{folder.name}.cache")) as cache:
            offline = uv.Offline(bundle.wheels, cache) if bundle else None
            uv.install(folder, place.pins.path, place.build_pins, lock.sdists, offline=offline, pass_fds=[descriptor])
        files.write(marker, json.dumps(wanted, indent=2) + "\n")
        status(f"installed {name} in {time.monotonic() - began:.0f} s")
    return python
