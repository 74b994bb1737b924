"""Virtual environments: the PyPI packages of a lock, installed for a Python of this machine."""

import json
import os
import shutil
import time
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.installs import activation, loader, site_files
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.target import MARKER, PYPI_GROWTH, read_marker, require_platform, temporary_folder
from smokehouse.locks import LockedEnvironment
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive


def ensure(checkout: Checkout, locked: LockedEnvironment, bundle: Bundle | None = None) -> Path:
    """Return the Python of an environment with the PyPI packages of its lock, installed unless it is up to date.

    It is up to date if the requirements files of the lock are the same, and the `bundle` if one is used; the loader alone is
    installed again where its sources have changed. Raises UserError where the lock is for another platform, differs from the
    files of the index or the bundle, or needs more disk space.
    """
    name, lock, pins, build_pins = locked.name, locked.lock, locked.files.pins, locked.files.build_pins
    folder = checkout.bundled(name) if bundle else checkout.installation(name)
    marker = folder / MARKER
    python = folder / "bin" / "python"
    content = {path.name: files.hashed(path) for path in (pins.path, build_pins)}
    if bundle:
        content["bundle"] = bundle.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"installing {name}") as descriptor:
        if read_marker(folder) == content and os.access(python, os.X_OK):
            loader.ensure(checkout, folder, pass_fds=[descriptor])
            site_files.add(folder, lock.python, locked.cuda)  # an earlier release did not
            return python
        require_platform(lock.platform, pins.name)
        size = sum(file.size for file in (*lock.pip, *lock.build))
        require_free_space(folder.parent, size * PYPI_GROWTH, f"install {pins.name}")
        if bundle:
            bundle.verify()
        began = time.monotonic()
        status(f"installing {name} ({len(lock.pip)} packages)")
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv.create_environment(folder, lock.python)
        with temporary_folder(folder.with_name(f".{folder.name}.cache")) as cache:
            offline = uv.Offline(bundle.wheels, cache) if bundle else None
            uv.install(folder, pins.path, build_pins, lock.sdists, offline=offline, pass_fds=[descriptor])
        loader.ensure(checkout, folder, pass_fds=[descriptor])
        site_files.add(folder, lock.python, locked.cuda)
        activation.prepare(folder, locked, folder)
        files.write(marker, json.dumps(content, indent=2) + "\n")
        status(f"installed {name} in {time.monotonic() - began:.0f} s")
    return python
