"""Prefixes: the conda and PyPI packages of a lock, installed in any folder without a container engine or root."""

import csv
import io
import json
import os
import re
import shutil
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.installs import activation, conda_packages, loader, ops, pypi, site_files, state
from smokehouse.installs.additions import Additions
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.fetch import fetch_conda
from smokehouse.installs.target import (
    MARKER,
    PYPI_GROWTH,
    carry_over,
    installed_already,
    is_same,
    others_in,
    read_marker,
    require_own_folder,
    require_platform,
    resolved,
    write_record,
)
from smokehouse.locks import LOCK_JSON, CondaPackage, LockedEnvironment
from smokehouse.programs import uv
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

# Installed size by the size of the archives; those of conda-forge unpack to about four times their size.
_CONDA_GROWTH = 5.0

# The head of a script that is valid in sh and in Python, and runs the interpreter in its own folder.
_RELOCATABLE_HEAD = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/%s "$0" "$@"
' '''
"""


def install(
    checkout: Checkout,
    locked: LockedEnvironment,
    folder: Path,
    *,
    bundled: Bundle | None = None,
    channel: str | None = None,
    devel: bool = False,
    used_as: Path | None = None,
    additions: Additions | None = None,
    toolkit: ops.Toolkit | None = None,
    repair: bool | None = None,
) -> Path:
    """Install an environment in `folder`, completely or not at all, and return its Python; raises UserError.

    Packages are fetched from `bundled`, or from `channel` (conda-forge if None) and the index that uv is configured
    with. `devel` adds the compilers and the CUDA toolkit. The files contain `used_as` as their prefix, by default
    `folder`. What an interrupted call fetched stays beside `folder`, for the next call. Where an installation with the same
    conda packages is there, only PyPI packages that changed or have damaged files are installed again, and the loader where
    its sources have changed. With a `toolkit`, DeepSpeed's ops are compiled. With `repair`, files are compared by their
    contents, and where one differs, all is installed again; it is None for a call that says nothing where all is as installed.
    """
    name, folder = locked.name, resolved(folder)
    require_own_folder(folder, name)  # before anything is written beside it
    used_as = (used_as or folder).absolute()
    packages = locked.lock.conda if devel else locked.lock.main
    additions = additions or Additions()
    marker: dict[str, Any] = {"environment": name, "devel": devel, "used_as": str(used_as), LOCK_JSON: locked.digest}
    marker |= {pypi.PACKAGES: pypi.fingerprints(locked, additions), **additions.record}
    marker |= {ops.OPS: list(toolkit.names)} if toolkit else {}
    if bundled:
        marker["bundle"] = bundled.digest
        bundled.require_conda(devel=devel)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial")
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"installing {name}") as descriptor:
        python = folder / "bin" / "python"
        _finish(staging / "replaced", folder, locked)
        found = read_marker(folder)
        if is_same(found, marker) and not activation.problems(folder, locked, packages, marker, strict=bool(repair)):
            if repair is not None:
                status(installed_already(folder, repair=repair))
            _install_loader(checkout, folder, locked, descriptor)
            shutil.rmtree(staging, ignore_errors=True)  # of a call that was killed at its very end
            return python
        require_own_folder(folder, name)
        shutil.rmtree(staging / "prefix", ignore_errors=True)
        others = others_in(folder, locked.lock.python)
        earlier = {} if repair else _reusable(folder, found, marker, locked, packages)
        _check_machine(staging, locked, packages, reused=bool(earlier))
        if bundled:
            bundled.verify()
        began = time.monotonic()
        count = f"{len(packages)} conda packages, {len(locked.lock.pip)} PyPI packages"
        status(f"installing {name} in {folder} ({count})")
        if earlier:
            # uv and everything below replace files and never write into one, so that `folder` stays as it is.
            shutil.copytree(folder, staging / "prefix", symlinks=True, copy_function=os.link)
            (staging / "prefix" / MARKER).unlink()
        else:
            archives = bundled.conda if bundled else staging / "archives"
            if not bundled:
                fetch_conda(packages, archives, channel or locked.lock.channel_url)
            _install_conda(staging, locked, packages, archives, used_as)
        offline = uv.Offline(bundled.wheels, staging / "uv") if bundled else None
        target = staging / "prefix"
        kept = ops.kept(earlier, found, toolkit)
        pypi.install(target, locked, additions, earlier=kept, offline=offline, pass_fds=[descriptor], contents=bool(repair))
        if toolkit:
            ops.compile_ahead(target, locked.lock.python, toolkit, activation.variables(target, os.environ))
        _make_scripts_relocatable(target, locked.lock.python)
        _install_loader(checkout, target, locked, descriptor)
        site_files.add(target, locked.lock.python, locked.cuda)
        activation.prepare(target, locked, used_as)
        pypi.require_complete(target, locked, packages, additions)
        write_record(target, others if earlier else set())
        files.write(target / MARKER, json.dumps(marker, indent=2) + "\n")
        if folder.exists():
            folder.rename(staging / "replaced")
        target.rename(folder)
        _finish(staging / "replaced", folder, locked)
        shutil.rmtree(staging)
        status(f"installed {name} in {time.monotonic() - began:.0f} s")
    return python


def _finish(replaced: Path, folder: Path, locked: LockedEnvironment) -> None:
    """Remove an installation that was `replaced` by that in `folder`, but for files that are not its own; raises OSError.

    Where the call that replaced it ended in between, it is put back.
    """
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    elif replaced.exists():
        carry_over(replaced, folder, locked.lock.python)
        shutil.rmtree(replaced)


def _reusable(
    folder: Path, found: object, marker: Mapping[str, Any], locked: LockedEnvironment, packages: Sequence[CondaPackage]
) -> dict[str, str]:
    """Return what the PyPI packages in `folder` are installed from, {} where its conda packages must be replaced.

    They must where the prefix was for another path, or one of them differs from the lock or has damaged files.
    """
    earlier = found.get(pypi.PACKAGES) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(earlier, dict) or found.get("used_as") != marker["used_as"]:
        return {}
    python = locked.lock.python
    if not os.access(folder / "bin" / "python", os.X_OK) or not pypi.is_removable(folder, python):
        return {}
    conda = {record.package for record in state.drift(folder, locked.lock, packages, {}) if record.is_conda}
    names = {package.name for package in packages}
    by_conda = {one.package for one in state.damage(folder, python, contents=False)} & names
    return {} if conda or by_conda - earlier.keys() else earlier


def _check_machine(staging: Path, locked: LockedEnvironment, packages: Sequence[CondaPackage], *, reused: bool = False) -> None:
    """Raise UserError where this machine is not compatible with the lock, or its disk is too small."""
    lock, lock_json = locked.lock, f"{locked.files.name}/{LOCK_JSON}"
    require_platform(lock.platform, lock_json)
    conda_packages.require_compatible_machine(lock.virtual_packages, lock_json)
    pypi = sum(file.size for file in (*lock.pip, *lock.build))
    conda = sum(package.size for package in packages)
    present = sum(path.lstat().st_size for path in staging.rglob("*"))
    needed = max(0.0, pypi * PYPI_GROWTH + conda * _CONDA_GROWTH - present)
    if not reused:
        require_free_space(staging.parent, needed, f"install {locked.name}")


def _install_conda(
    staging: Path, locked: LockedEnvironment, packages: Sequence[CondaPackage], archives: Path, used_as: Path
) -> None:
    """Install conda packages, whose channel is the folder `archives`, in staging/prefix."""
    origins = {f"{locked.lock.channel_url}/{package.path}": archives / package.path for package in packages}
    # What an interrupted call has unpacked has no hash in the lock, as archives have: unpack them again.
    shutil.rmtree(staging / "cache", ignore_errors=True)
    conda_packages.link(origins, staging / "prefix", used_as, staging / "cache")


def _install_loader(checkout: Checkout, target: Path, locked: LockedEnvironment, descriptor: int) -> None:
    """Install the loader in `target` unless it is up to date, while uv keeps the lock file `descriptor` open."""
    if loader.ensure(checkout, target, pass_fds=[descriptor]):
        _make_scripts_relocatable(target, locked.lock.python)


def _make_scripts_relocatable(target: Path, python: str) -> None:
    """Make the console scripts of the PyPI packages run the Python in their own folder, wherever it is moved."""
    packages = state.site_packages(target, python)
    for record in packages.glob("*.dist-info/RECORD"):
        rows = list(csv.reader(io.StringIO(record.read_text("utf-8"))))
        changed = False
        for row in rows:
            script = Path(os.path.normpath(packages / row[0]))
            if script.parent != target / "bin" or script.is_symlink() or not script.is_file():
                continue
            if (data := _relocatable(script.read_bytes(), target)) is None:
                continue
            # Never in place: the file can be a hard link of the file in uv's cache.
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


def _relocatable(script: bytes, target: Path) -> bytes | None:
    """Return a script of the Python in `target` with a relocatable head, None for any other script."""
    interpreter = re.escape(os.fsencode(target / "bin")) + rb"/(python[\d.]*)"
    direct = re.match(rb"#!" + interpreter + rb"\r?\n", script)
    # The form for a path with spaces, or that is too long for the kernel.
    through_shell = re.match(rb"#!/bin/sh\n'''exec' [\"']?" + interpreter + rb"[\"']? \"\$0\" \"\$@\"\n' '''\n", script)
    found = direct or through_shell
    if not found:
        return None
    return _RELOCATABLE_HEAD % found[1] + script[found.end() :]
