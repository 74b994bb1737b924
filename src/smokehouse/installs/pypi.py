"""Bring the Python packages of an environment to what a lock and its additions say, changing as few as possible."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from smokehouse.console import status
from smokehouse.errors import UserError, collecting
from smokehouse.installs import bytecode, loader, owners, state
from smokehouse.installs.additions import Additions
from smokehouse.installs.extra_wheels import require_installed_torch_abi
from smokehouse.locks import CondaPackage, LockedEnvironment, LockedFile
from smokehouse.programs import uv
from smokehouse.storage import files

# The key of a marker with the SHA-256 of each package, by which an update knows what has changed.
PACKAGES = "packages"

_SHOWN = 3  # problems that a message lists


def fingerprints(locked: LockedEnvironment, additions: Additions) -> dict[str, str]:
    """Return by canonical name what each package is installed from: its SHA-256, for a built one also its build's."""
    built = files.hashed(locked.files.build_pins)
    found = {
        str(canonicalize_name(file.name)): file.sha256 if file.file.endswith(".whl") else f"{file.sha256}+{built}"
        for file in locked.lock.pip
    }
    return found | {str(canonicalize_name(file.name)): file.sha256 for file in additions.files}


def is_removable(folder: Path, python: str) -> bool:
    """Return whether each package in an environment lists its files, without which it cannot be replaced."""
    return all(one.is_removable for one in state.distributions(folder, python))


def install(
    folder: Path,
    locked: LockedEnvironment,
    additions: Additions,
    *,
    earlier: Mapping[str, str],
    offline: uv.Offline | None,
    pass_fds: Sequence[int],
    contents: bool = False,
) -> None:
    """Install the PyPI packages of a lock and its additions in the environment in `folder`, and remove all others.

    `earlier` has the `fingerprints` of what is there; packages that changed or have damaged files are installed again.
    With `contents`, files of uv's cache are read, where an edit that keeps a file's size is found, too. Raises UserError.
    """
    lock, wanted = locked.lock, fingerprints(locked, additions)
    there = {one.name for one in state.distributions(folder, lock.python)}
    foreign = [drifted.package for drifted in _foreign(folder, locked, additions) if drifted.package in there]
    if foreign:
        uv.uninstall(folder, foreign)
    damaged = {found.package for found in state.damage(folder, lock.python, contents=False)}
    again = sorted(name for name in there & wanted.keys() if earlier.get(name) != wanted[name] or name in damaged)
    if earlier:
        kept = len(there & wanted.keys()) - len(again)
        gone = len({*foreign} - {loader.NAME})  # which comes again
        status(f"installing {len(wanted) - kept} of {len(wanted)} PyPI packages, {gone} removed; the others are there")
    names = {canonicalize_name(file.name) for file in lock.pip}
    pins, builds = locked.files.pins.path, locked.files.build_pins
    ours = [name for name in again if name in names]
    uv.install(folder, pins, builds, lock.sdists, offline=offline, reinstall=ours, pass_fds=pass_fds)
    # Files of uv's cache are those of installations: whoever edits one edits both. To install again refreshes the cache.
    damaged = {found.package for found in state.damage(folder, lock.python, contents=contents)} & names
    if damaged and not offline:
        uv.install(folder, pins, builds, lock.sdists, reinstall=sorted(damaged), pass_fds=pass_fds)
    _install_additions(folder, locked, additions, [name for name in again if name not in names], offline, pass_fds)
    uv.check(folder)


def require_complete(folder: Path, locked: LockedEnvironment, conda: Sequence[CondaPackage], additions: Additions) -> None:
    """Raise UserError where the environment in `folder` is not what the lock and its additions say, file by file.

    No package may have replaced files of another, and what was built from source has to keep to its own. Compiled files that
    were cut are compiled again.
    """
    bytecode.repair(folder, locked.lock.python)
    built = {canonicalize_name(file.name) for file in (*locked.lock.pip, *additions.files) if not file.file.endswith(".whl")}
    if problems := owners.problems(folder, locked.lock.python, built):
        raise UserError(f"{folder}: {shorten(problems)}; remove that package from the environment")
    if problems := differences(folder, locked, conda, versions(additions), strict=True):
        raise UserError(
            f"{folder}: expected what the lock specifies, found after the installation: {shorten(problems)}; check the "
            f"variables and configuration files of uv, run uv cache clean for these packages, and run it again"
        )


def differences(
    folder: Path, locked: LockedEnvironment, conda: Sequence[CondaPackage], added: Mapping[str, str], *, strict: bool
) -> list[str]:
    """Return how packages and files in the environment in `folder` differ from a lock and the versions `added` to it.

    If `strict`, files are read, and packages that neither lists are differences.
    """
    drifted = [one for one in state.drift(folder, locked.lock, conda, added) if strict or one.locked]
    damaged = state.damage(folder, locked.lock.python, contents=strict)
    files_of = [f"{one.path.relative_to(folder)} of {one.package}: {one.problem}" for one in damaged]
    with collecting(files_of):
        cut = bytecode.cut(folder, locked.lock.python, contents=strict)
        files_of += [f"{path.relative_to(folder)}: cut, so that Python cannot load it; remove it" for path in cut]
    return [*(one.text for one in drifted), *files_of]


def shorten(problems: Sequence[str]) -> str:
    """Return the first few of `problems` in one line."""
    more = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def versions(additions: Additions) -> dict[str, str]:
    """Return the version of each package that is added, by canonical name."""
    found = {str(canonicalize_name(file.name)): file.version for file in additions.files}
    project = additions.project
    return found | ({project.name: project.version} if project else {})


def _foreign(folder: Path, locked: LockedEnvironment, additions: Additions) -> Iterable[state.Drift]:
    """Return the Python packages that neither the lock nor an addition brings.

    The project and the loader are installed again afterwards; of packages that they require, uv would miss those it removes.
    """
    kept = {str(canonicalize_name(file.name)): file.version for file in additions.files}
    return [drifted for drifted in state.drift(folder, locked.lock, (), kept, with_loader=True) if not drifted.locked]


def _install_additions(
    folder: Path,
    locked: LockedEnvironment,
    additions: Additions,
    reinstall: Sequence[str],
    offline: uv.Offline | None,
    pass_fds: Sequence[int],
) -> None:
    project = additions.project
    require_installed_torch_abi(
        [wheel.request for wheel in additions.wheels], locked.lock, state.site_packages(folder, locked.lock.python)
    )
    with tempfile.TemporaryDirectory() as place:
        pins, builds = Path(place, "requirements.txt"), Path(place, "build-requirements.txt")
        lines = [
            f"{wheel.file.name} @ {wheel.path.absolute().as_uri()} --hash=sha256:{wheel.file.sha256}\n"
            for wheel in additions.wheels
        ]
        lines += map(_pin, project.added if project else ())
        if lines:
            pins.write_text("".join(lines))
            builds.write_text("".join(map(_pin, project.build if project else ())))
            built = [file.name for file in (project.added if project else ()) if not file.file.endswith(".whl")]
            uv.install(folder, pins, builds, built, offline=offline, reinstall=reinstall, pass_fds=pass_fds)
    if project:
        uv.install_editable(project.path, folder, pass_fds=pass_fds)


def _pin(file: LockedFile) -> str:
    return f"{file.name}=={file.version} --hash=sha256:{file.sha256}\n"
