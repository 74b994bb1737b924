"""Both halves of an environment, installed in a folder of the user's choice: no container engine, no root."""

import csv
import io
import json
import os
import re
import shutil
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.installs import bundle
from smokehouse.installs import conda_packages as prefix
from smokehouse.installs import fetch as sources
from smokehouse.installs.target import MARKER, UNPACKED, read_marker, refuse_platform
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import LOCK_JSON, CondaPackage, Lock
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

# An archive of conda-forge unpacks to about four times its size. No lock has been measured yet.
_CONDA_UNPACKED = 5.0

# A shell script and, from its third line, a Python script: runs the interpreter in its own folder.
_BESIDE = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/%s "$0" "$@"
' '''
"""


def install(
    locked: LockedEnvironment,
    folder: Path,
    *,
    bundled: bundle.Bundle | None = None,
    channel: str | None = None,
    devel: bool = False,
    used_as: Path | None = None,
) -> Path:
    """Install an environment in `folder`, whole or not at all, and return its Python.

    Everything is fetched from `bundled`, or from `channel` (conda-forge if None) and the index that uv is configured
    with. With `devel` the compilers and the CUDA toolkit come too. The files name `used_as`, by default `folder`, where
    they name their own place. An interrupted call leaves what it fetched beside `folder`, for the next. Raises UserError.
    """
    name, lock, folder = locked.name, locked.lock, folder.absolute()
    lock_json = f"{locked.files.name}/{LOCK_JSON}"
    packages = lock.conda if devel else lock.main
    wanted: dict[str, Any] = {
        "environment": name,
        "devel": devel,
        "used_as": str((used_as or folder).absolute()),
        LOCK_JSON: locked.digest,
    }
    if bundled:
        wanted["bundle"] = bundled.digest
        bundled.require_conda(devel=devel)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial")
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"installing {name}") as descriptor:
        python = folder / "bin" / "python"
        if read_marker(folder) == wanted and os.access(python, os.X_OK):
            return python
        _refuse_foreign(folder, name)
        refuse_platform(lock.platform, lock_json)
        prefix.refuse_machine(lock.virtual_packages, lock_json)
        shutil.rmtree(staging / "prefix", ignore_errors=True)
        _refuse_small_disk(staging, lock, packages, name)
        if bundled:
            bundled.verify()
        began = time.monotonic()
        status(f"installing {name} in {folder} ({len(packages)} conda packages, {len(lock.pip)} Python packages)")
        _fill(staging, locked, packages, bundled, channel, Path(wanted["used_as"]), descriptor)
        files.write(staging / "prefix" / MARKER, json.dumps(wanted, indent=2) + "\n")
        if folder.exists():
            folder.rename(staging / "replaced")
        (staging / "prefix").rename(folder)
        shutil.rmtree(staging)
        status(f"installed {name} in {time.monotonic() - began:.0f} s")
    return python


def _fill(
    staging: Path,
    locked: LockedEnvironment,
    packages: tuple[CondaPackage, ...],
    bundled: bundle.Bundle | None,
    channel: str | None,
    used_as: Path,
    descriptor: int,
) -> None:
    """Make staging/prefix the environment."""
    target, lock = staging / "prefix", locked.lock
    archives = bundled.conda if bundled else staging / "archives"
    if not bundled:
        sources.fetch_conda(packages, archives, channel or lock.channel_url)
    origins = {f"{lock.channel_url}/{package.path}": archives / package.path for package in packages}
    prefix.link(origins, target, used_as, staging / "cache")
    offline = uv.Offline(bundled.wheels, staging / "uv") if bundled else None
    uv.install(target, locked.files.pins.path, locked.files.build_pins, lock.sdists, offline=offline, pass_fds=[descriptor])
    _free_scripts(target, lock.python)


def _refuse_foreign(folder: Path, name: str) -> None:
    """Raise UserError where `folder` holds anything but an installation of the environment `name`."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: not a folder; name an empty or a new one")
    if folder.is_dir() and any(folder.iterdir()):
        marker = read_marker(folder)
        if not isinstance(marker, dict) or marker.get("environment") != name:
            raise UserError(f"{folder}: holds other things than {name}; name an empty or a new folder")


def _refuse_small_disk(staging: Path, lock: Lock, packages: tuple[CondaPackage, ...], name: str) -> None:
    pip = sum(file.size for file in (*lock.pip, *lock.build))
    conda = sum(package.size for package in packages)
    there = sum(path.lstat().st_size for path in staging.rglob("*"))
    need = max(0.0, pip * UNPACKED + conda * _CONDA_UNPACKED - there)
    require_free_space(staging.parent, need, f"install {name}")


def _free_scripts(target: Path, python: str) -> None:
    """Make the console scripts of the pip half find their Python beside themselves, wherever they are moved to."""
    packages = target / "lib" / f"python{python}" / "site-packages"
    for record in packages.glob("*.dist-info/RECORD"):
        rows = list(csv.reader(io.StringIO(record.read_text("utf-8"))))
        changed = False
        for row in rows:
            script = Path(os.path.normpath(packages / row[0]))
            if script.parent != target / "bin" or script.is_symlink() or not script.is_file():
                continue
            if (data := _freed(script.read_bytes(), target)) is None:
                continue
            # Never in place: the file can be one with the file in uv's cache.
            copy = script.with_name(f".{script.name}")
            copy.write_bytes(data)
            copy.chmod(0o755)
            copy.replace(script)
            digest = urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()
            row[1:] = [f"sha256={digest}", str(len(data))]
            changed = True
        if changed:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            files.write(record, text.getvalue())


def _freed(script: bytes, target: Path) -> bytes | None:
    """Return a script that is run by the Python in `target` as one run by that beside it, None for any other script."""
    interpreter = re.escape(os.fsencode(target / "bin")) + rb"/(python[\d.]*)"
    direct = re.match(rb"#!" + interpreter + rb"\r?\n", script)
    # The form for a path that is too long for the kernel, or has spaces.
    through_shell = re.match(rb"#!/bin/sh\n'''exec' [\"']?" + interpreter + rb"[\"']? \"\$0\" \"\$@\"\n' '''\n", script)
    found = direct or through_shell
    if not found:
        return None
    return _BESIDE % found[1] + script[found.end() :]
