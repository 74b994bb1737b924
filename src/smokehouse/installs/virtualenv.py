"""Virtual environments: the PyPI packages of a lock, installed for a Python of this machine."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.installs import activation, loader, ops, pypi, site_files
from smokehouse.installs.additions import Additions
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.target import (
    MARKER,
    PYPI_GROWTH,
    carry_over,
    installed_already,
    is_same,
    others_in,
    read_marker,
    require_own_folder,
    require_place,
    require_platform,
    resolved,
    temporary_folder,
    unfinished,
    write_record,
)
from smokehouse.locks import LockedEnvironment
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

# What the marker says of an installation in a folder that the user chose.
_CHOSEN = {"kind": "pip"}


def ensure(checkout: Checkout, locked: LockedEnvironment, bundle: Bundle | None = None) -> Path:
    """Return the Python of an environment with the PyPI packages of its lock, installed unless it is up to date.

    It is up to date if the requirements files of the lock are the same, and the `bundle` if one is used; the loader alone is
    installed again where its sources have changed. Raises UserError where the lock is for another platform, differs from the
    files of the index or the bundle, or needs more disk space.
    """
    folder = checkout.bundled(locked.name) if bundle else checkout.installation(locked.name)
    return _install(checkout, locked, folder, {"kind": "smoke"}, bundle, None, Additions())


def install(
    checkout: Checkout,
    locked: LockedEnvironment,
    folder: Path,
    *,
    bundled: Bundle | None = None,
    python: str | None = None,
    additions: Additions | None = None,
    toolkit: ops.Toolkit | None = None,
    repair: bool = False,
) -> Path:
    """Install the PyPI packages of a lock in a virtual environment in `folder`, and return its Python; raises UserError.

    `python` is the version or path of the interpreter, by default one of the version of the lock. Where an installation is
    there, only packages that changed or have damaged files are installed again. With a `toolkit`, DeepSpeed's ops are compiled.
    With `repair`, files are compared by their contents, and where one differs, all is installed again.
    """
    if python and os.sep in python:
        python = str(Path(python).absolute())
    return _install(
        checkout, locked, resolved(folder), _CHOSEN, bundled, python, additions or Additions(), toolkit, repair=repair
    )


def _install(
    checkout: Checkout,
    locked: LockedEnvironment,
    folder: Path,
    kind: dict[str, Any],
    bundled: Bundle | None,
    python: str | None,
    additions: Additions,
    toolkit: ops.Toolkit | None = None,
    *,
    repair: bool = False,
) -> Path:
    name, lock, pins = locked.name, locked.lock, locked.files.pins
    if kind == _CHOSEN:  # before anything is written beside it
        require_place(folder)
        if not _lock(folder).exists():  # else another call may be writing into it
            require_own_folder(folder, name)
    marker: dict[str, Any] = {"environment": name, **kind}
    marker |= {path.name: files.hashed(path) for path in (pins.path, locked.files.build_pins)}
    marker |= {"python": python} if python else {}
    marker |= {"bundle": bundled.digest} if bundled else {}
    marker |= {pypi.PACKAGES: pypi.fingerprints(locked, additions), **additions.record}
    marker |= {ops.OPS: list(toolkit.names)} if toolkit else {}
    interpreter = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_lock(folder), f"installing {name}") as descriptor:
        found = read_marker(folder)
        if is_same(found, marker) and not activation.problems(folder, locked, (), marker, strict=repair):
            if kind == _CHOSEN:
                status(installed_already(folder, repair=repair))
            loader.ensure(checkout, folder, pass_fds=[descriptor])
            site_files.add(folder, lock.python, locked.cuda)  # an earlier release did not
            return interpreter
        if kind == _CHOSEN:
            require_own_folder(folder, name)
        require_platform(lock.platform, pins.name)
        there = found.get(pypi.PACKAGES) if isinstance(found, dict) and found.get("python") == python else None
        usable = not repair and isinstance(there, dict) and _is_usable(interpreter, folder, lock.python)
        earlier = ops.kept(there, found, toolkit) if usable and isinstance(there, dict) else {}
        changed = {package for package, digest in marker[pypi.PACKAGES].items() if earlier.get(package) != digest}
        size = sum(file.size for file in lock.pip if file.name in changed)
        size += sum(file.size for file in lock.build) if {*lock.sdists} & changed else 0
        require_free_space(folder.parent, size * PYPI_GROWTH, f"install {pins.name}")
        if bundled:
            bundled.verify()
        began = time.monotonic()
        status(f"installing {name} ({len(lock.pip)} packages)")
        others = others_in(folder, lock.python)
        if not earlier:
            _remove(folder, lock.python)
        if kind == _CHOSEN:  # so that a second call knows whose folder it is, whenever this one ends
            files.write(folder / MARKER, unfinished(name))
        else:
            (folder / MARKER).unlink(missing_ok=True)
        if not earlier:
            uv.create_environment(folder, lock.python, python)
        with temporary_folder(folder.with_name(f".{folder.name}.cache")) as cache:
            offline = uv.Offline(bundled.wheels, cache) if bundled else None
            pypi.install(folder, locked, additions, earlier=earlier, offline=offline, pass_fds=[descriptor], contents=repair)
        if toolkit:
            ops.compile_ahead(folder, lock.python, toolkit, activation.variables(folder, os.environ))
        loader.ensure(checkout, folder, pass_fds=[descriptor])
        site_files.add(folder, lock.python, locked.cuda)
        activation.prepare(folder, locked, folder)
        pypi.require_complete(folder, locked, (), additions)
        write_record(folder, others if earlier else set())
        if (kept := _kept(folder)).exists():
            carry_over(kept, folder, lock.python)
            shutil.rmtree(kept)
        files.write(folder / MARKER, json.dumps(marker, indent=2) + "\n")
        status(f"installed {name} in {time.monotonic() - began:.0f} s")
    return interpreter


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _kept(folder: Path) -> Path:
    """Return the folder for the files of an installation that is replaced which are not its own."""
    return folder.with_name(f".{folder.name}.kept")


def _remove(folder: Path, python: str) -> None:
    """Remove `folder` so that, wherever this is interrupted, no part of it remains in its place.

    Files that are not of the installation are moved aside, and back at the end.
    """
    carry_over(folder, _kept(folder), python)
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _is_usable(interpreter: Path, folder: Path, python: str) -> bool:
    """Return whether packages in a virtual environment can be replaced one by one."""
    return os.access(interpreter, os.X_OK) and (folder / "pyvenv.cfg").is_file() and pypi.is_removable(folder, python)
