"""Find installed environments, and start programs in them."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smokehouse.checkout import Checkout
from smokehouse.console import STARTED_BY, as_typed
from smokehouse.errors import UserError
from smokehouse.installs import ops, pypi, site_files, state
from smokehouse.installs.additions import PROJECT, WITH, recorded_versions
from smokehouse.installs.project import files_of
from smokehouse.installs.target import MARKER, read_marker
from smokehouse.locks import CondaPackage, LockedEnvironment, constraints
from smokehouse.storage import files

# Variables that would bring packages of another Python into the environment.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV_PROMPT", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", STARTED_BY)

# The versions of the lock, in the folder of an installation; pip and uv find it by the variables of _CONSTRAINTS.
_CONSTRAINTS_FILE = "constraints.txt"
_CONSTRAINTS = ("UV_CONSTRAINT", "PIP_CONSTRAINT")

# The same for prefixes, which have no such script, and for virtual environments, whose own knows no constraints; valid in
# sh, bash and zsh. What it changes, `deactivate` puts back.
_SCRIPT = """\
# Activate this environment: source {prefix}/bin/activate
# The function of an active environment; other programs are called so, too, and have a path.
if [ "$(command -v deactivate)" = deactivate ]; then
    deactivate
fi
_SMOKEHOUSE_OLD_PATH="$PATH"
_SMOKEHOUSE_OLD_PYTHONHOME="${{PYTHONHOME-}}"
_SMOKEHOUSE_OLD_PS1="${{PS1-}}"
_SMOKEHOUSE_OLD_UV_CONSTRAINT="${{UV_CONSTRAINT-}}"
_SMOKEHOUSE_OLD_PIP_CONSTRAINT="${{PIP_CONSTRAINT-}}"
unset PYTHONHOME
VIRTUAL_ENV={prefix}
PATH={prefix}/bin:"$PATH"
# What pip and uv install beside the lock does not change the versions of the lock. A URL, as both split at spaces.
UV_CONSTRAINT={constraints}
PIP_CONSTRAINT={constraints}
export VIRTUAL_ENV PATH UV_CONSTRAINT PIP_CONSTRAINT
{conda}if [ -n "${{PS1-}}" ] && [ -z "${{VIRTUAL_ENV_DISABLE_PROMPT-}}" ]; then
    PS1="({name}) $PS1"
fi
hash -r 2> /dev/null
deactivate() {{
    PATH="$_SMOKEHOUSE_OLD_PATH"
    export PATH
    unset VIRTUAL_ENV UV_CONSTRAINT PIP_CONSTRAINT{unset_conda}
    if [ -n "$_SMOKEHOUSE_OLD_PYTHONHOME" ]; then
        export PYTHONHOME="$_SMOKEHOUSE_OLD_PYTHONHOME"
    fi
    if [ -n "$_SMOKEHOUSE_OLD_UV_CONSTRAINT" ]; then
        export UV_CONSTRAINT="$_SMOKEHOUSE_OLD_UV_CONSTRAINT"
    fi
    if [ -n "$_SMOKEHOUSE_OLD_PIP_CONSTRAINT" ]; then
        export PIP_CONSTRAINT="$_SMOKEHOUSE_OLD_PIP_CONSTRAINT"
    fi
    if [ -n "$_SMOKEHOUSE_OLD_PS1" ]; then
        PS1="$_SMOKEHOUSE_OLD_PS1"
    fi
    unset _SMOKEHOUSE_OLD_PATH _SMOKEHOUSE_OLD_PYTHONHOME _SMOKEHOUSE_OLD_PS1
    unset _SMOKEHOUSE_OLD_UV_CONSTRAINT _SMOKEHOUSE_OLD_PIP_CONSTRAINT
    unset -f deactivate
    hash -r 2> /dev/null
}}
"""


@dataclass(frozen=True)
class Installation:
    """An installed environment; `current` is whether it was installed from the lock as it is now."""

    folder: Path
    current: bool


def find(checkout: Checkout, locked: LockedEnvironment) -> Installation | None:
    """Return the installation that `smoke` made of an environment, None where there is no complete one."""
    for folder in (checkout.installation(locked.name), checkout.bundled(locked.name)):
        if found := _read(folder, locked):
            return found
    return None


def read_prefix(folder: Path, locked: LockedEnvironment) -> Installation:
    """Return the installation in `folder`; raises UserError where it is not one of this environment."""
    marker = read_marker(folder)
    if not isinstance(marker, dict) or marker.get("environment") != locked.name or not (found := _read(folder, locked)):
        remedy = as_typed("install", locked.name, str(folder))
        raise UserError(f"{folder}: expected an installation of {locked.name}, {MARKER} not found or of another; run {remedy}")
    return found


def recorded_project(folder: Path) -> object:
    """Return what the marker of the installation in `folder` says of a project, None without one."""
    marker = read_marker(folder)
    return marker.get(PROJECT) if isinstance(marker, dict) else None


def differences(found: Installation, locked: LockedEnvironment, *, strict: bool) -> list[str]:
    """Return how an installation differs from its lock and from what its marker says was added; see `problems`."""
    marker = read_marker(found.folder)
    if not isinstance(marker, dict):
        return [f"{MARKER}: not found"]
    older = [] if found.current else ["installed from an older lock"]
    return older + problems(found.folder, locked, _conda_packages(found.folder, locked, marker), marker, strict=strict)


def remedy(found: Installation, locked: LockedEnvironment, *, contents: bool = False) -> str:
    """Return the command that repairs an installation, with the options that it was made with.

    `contents` is whether something differs that only shows when files are read.
    """
    marker = read_marker(found.folder)
    recorded = marker if isinstance(marker, dict) else {}
    if recorded.get("kind") == "smoke":
        removal = f"rm -r {shlex.quote(str(found.folder))} && " if contents else ""
        return removal + as_typed("smoke", locked.name)
    options = ["--only", "pip"] if recorded.get("kind") == "pip" else ["--devel"] if recorded.get("devel") else []
    options += ["--ops", "aot"] if recorded.get(ops.OPS) else []
    project = recorded.get(PROJECT)
    if isinstance(project, dict):
        extras = project.get("extras") or []
        chosen = f"{project.get('path')}[{','.join(map(str, extras))}]" if extras else str(project.get("path"))
        options += ["--with-project", shlex.quote(chosen)]
    for option in ("python", "used_as"):
        if (value := recorded.get(option)) and value != str(found.folder):
            options += [f"--{option.replace('_', '-')}", shlex.quote(str(value))]
    options += ["--bundle", "DIR"] if recorded.get("bundle") else []
    for file in files_of({WITH: recorded.get(WITH) or []}, WITH):
        options += ["--with", shlex.quote(f"{file.file}#sha256={file.sha256}")]
    options += ["--repair"] if contents else []
    return as_typed("install", locked.name, shlex.quote(str(found.folder)), *options)


def drift(found: Installation, locked: LockedEnvironment) -> Iterator[tuple[str, str, bool]]:
    """Yield each difference of an installation from its lock: of which package, what, and whether it is in order.

    In order is what the marker records as added, by --with or --with-project. Files are compared by their sizes.
    """
    marker = read_marker(found.folder)
    recorded = recorded_versions(marker) if isinstance(marker, dict) else {}
    packages = _conda_packages(found.folder, locked, marker if isinstance(marker, dict) else {})
    there = set()
    for one in state.drift(found.folder, locked.lock, packages, {}):
        version, origin = recorded.get(one.package, ("", ""))
        there |= {one.package} if one.found else set()
        if not origin or one.locked:
            yield one.package, one.what, False
        elif one.found == version:
            yield one.package, f"{version}, added by {origin}", True
        else:
            yield one.package, f"expected {version}, added by {origin}, found {one.found}", False
    for name, (version, origin) in recorded.items():
        if name not in there:
            yield name, f"expected {version}, added by {origin}, not installed", False
    damaged = state.damage(found.folder, locked.lock.python, contents=False)
    texts = [f"{one.path.relative_to(found.folder)} of {one.package}: {one.problem}" for one in damaged]
    if texts:
        yield str(found.folder), pypi.shorten(texts), False


def _conda_packages(folder: Path, locked: LockedEnvironment, marker: Mapping[str, Any]) -> tuple[CondaPackage, ...]:
    if not (folder / "conda-meta").is_dir() and "devel" not in marker:
        return ()
    return locked.lock.conda if marker.get("devel") else locked.lock.main


def hint(folder: Path, name: str, *, prefix: bool = False) -> str:
    """Return how to use the environment `name` that is installed in `folder`, a `prefix` that the user chose or not."""
    chosen = ("--prefix", shlex.quote(str(folder))) if prefix else ()
    return (
        f"To use it: source {shlex.quote(str(folder / 'bin' / 'activate'))}, or {as_typed('run', *chosen, name, '-- COMMAND')}"
    )


def prepare(folder: Path, locked: LockedEnvironment, used_as: Path) -> None:
    """Write the activation script of an environment in `folder` that is used as `used_as`, and its constraints.txt.

    Raises OSError.
    """
    files.write(folder / _CONSTRAINTS_FILE, constraints.text(locked.files, locked.lock))
    script, prefix = folder / "bin" / "activate", shlex.quote(str(used_as))
    has_conda = (folder / "conda-meta").is_dir()
    text = _SCRIPT.format(
        prefix=prefix,
        name=locked.name,
        constraints=shlex.quote((used_as / _CONSTRAINTS_FILE).as_uri()),
        conda=f"export CONDA_PREFIX={prefix}\n" if has_conda else "",
        unset_conda=" CONDA_PREFIX" if has_conda else "",
    )
    files.write(script, text)


def problems(
    folder: Path,
    locked: LockedEnvironment,
    packages: Sequence[CondaPackage],
    marker: Mapping[str, Any],
    *,
    strict: bool = False,
) -> list[str]:
    """Return how a complete installation differs from its lock, the conda `packages` of it, and its marker.

    If `strict`, files are read and compared by their hashes, and packages that the marker does not list are problems.
    """
    if not os.access(folder / "bin" / "python", os.X_OK):
        return ["bin/python: not found"]
    added = {name: version for name, (version, _) in recorded_versions(marker).items()}
    found = pypi.differences(folder, locked, packages, added, strict=strict)
    missing = [path for path in (_CONSTRAINTS_FILE, "bin/activate") if not (folder / path).is_file()]
    found += [f"{path}: not found" for path in missing] + ops.missing(folder, locked.lock.python, marker)
    if strict:
        own = site_files.contents(locked.cuda)
        strays = state.unlisted(folder, locked.lock.python, own)
        found += [f"{path}: unexpected, no package lists it; remove it" for path in strays]
    return found


def execute(folder: Path, command: Sequence[str]) -> NoReturn:
    """Replace this process with `command`, run in the environment in `folder`; raises UserError where it is not found."""
    environ = variables(folder, os.environ)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], [*command], environ)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{command[0]}: command not found in {folder / 'bin'} or PATH; check its name") from None
    except PermissionError:
        raise UserError(f"{command[0]}: cannot be executed; fix its permissions, or start it with python") from None


def variables(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables `environ` as the activation of the environment in `folder` changes them.

    What another activated environment added, or the one that Smokehouse itself runs in, is left out.
    """
    others = {str(Path(sys.prefix, "bin"))} if sys.prefix != sys.base_prefix else set()
    others |= {str(Path(environ[name], "bin")) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environ.get(name)}
    path = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry not in others]
    kept = without_foreign(environ)
    kept |= {"PATH": os.pathsep.join([str(folder / "bin"), *path]), "VIRTUAL_ENV": str(folder), "PYTHONNOUSERSITE": "1"}
    constraints_file = folder / _CONSTRAINTS_FILE
    if constraints_file.is_file():
        kept |= dict.fromkeys(_CONSTRAINTS, constraints_file.absolute().as_uri())
    return kept | ({"CONDA_PREFIX": str(folder)} if (folder / "conda-meta").is_dir() else {})


def without_foreign(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables `environ` without those that bring packages of another Python."""
    return {name: value for name, value in environ.items() if name not in _FOREIGN}


def _read(folder: Path, locked: LockedEnvironment) -> Installation | None:
    marker = read_marker(folder)
    if not isinstance(marker, dict) or "unfinished" in marker or not os.access(folder / "bin" / "python", os.X_OK):
        return None
    return Installation(folder, _is_of(marker, locked))


def _is_of(marker: Mapping[str, Any], locked: LockedEnvironment) -> bool:
    """Return whether a marker has digests of files of a lock, and all of them are those that the lock has now."""
    now = {path.name: path for path in (locked.files.lock_json, locked.files.pins.path, locked.files.build_pins)}
    digests = {name: digest for name, digest in marker.items() if name.endswith((".txt", ".json"))}
    return bool(digests) and all(name in now and files.hashed(now[name]) == digest for name, digest in digests.items())
