"""What a machine needs to install an environment and train in it, as far as one can tell without torch."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, size
from smokehouse.errors import UserError
from smokehouse.installs import activation
from smokehouse.installs.activation import Installation
from smokehouse.installs.target import PYPI_GROWTH, require_platform
from smokehouse.locks import LockedEnvironment
from smokehouse.programs import uv
from smokehouse.programs.process import run

_DEADLINE = 60.0  # seconds


@dataclass(frozen=True)
class Finding:
    """The result of one check. Training or the installation fails after `FAIL`; after `warn` some of it may."""

    verdict: Literal["ok", "warn", "FAIL"]
    text: str


def findings(checkout: Checkout, locked: LockedEnvironment, driver: str, prefix: Path | None = None) -> list[Finding]:
    """Check this machine for an environment that needs the NVIDIA driver `driver` or a later one, and its installation.

    The installation is that in `prefix`, by default that of `smoke`. Raises UserError.
    """
    installation = activation.read_prefix(prefix, locked) if prefix else activation.find(checkout, locked)
    return [
        *_machine(checkout, driver),
        _platform(locked),
        _python(locked),
        *_compilers(),
        _disk(checkout, locked, installation),
        _installation(locked, installation),
        *(_drift(locked, installation) if installation else ()),
    ]


def _machine(checkout: Checkout, driver: str) -> Iterator[Finding]:
    """Yield what the doctor of images finds here: it is the owner of these checks."""
    doctor = checkout.file("docker/inside/doctor")
    command = [sys.executable, "-I", str(doctor), "--host", "--json", "--driver", driver]
    ended = run(command, deadline=_DEADLINE, environ=os.environ, cwd=Path("/"))
    try:
        yield from (Finding(**found) for found in json.loads(ended.stdout))
    except (ValueError, TypeError):
        said = (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
        raise UserError(f"{doctor}: expected JSON, found {said or 'nothing'}; install Smokehouse again") from None


def _platform(locked: LockedEnvironment) -> Finding:
    try:
        require_platform(locked.lock.platform, locked.name)
    except UserError as problem:
        return Finding("FAIL", str(problem))
    return Finding("ok", f"platform {locked.lock.platform}")


def _python(locked: LockedEnvironment) -> Finding:
    version = locked.lock.python
    if found := uv.find_python(version):
        return Finding("ok", f"Python {version} at {found}")
    prefix = as_typed("install", locked.name, "PREFIX")
    return Finding("warn", f"Python {version} not found; uv downloads one where it may, and {prefix} brings one")


def _compilers() -> Iterator[Finding]:
    for program, needed_for in (("g++", "DeepSpeed compiles CPU ops"), ("nvcc", "DeepSpeed and flash-attn compile CUDA ops")):
        if found := shutil.which(program):
            yield Finding("ok", f"{program} at {found}")
        else:
            yield Finding("warn", f"{program} not found, with which {needed_for}; an environment with --devel has it")


def _disk(checkout: Checkout, locked: LockedEnvironment, installation: Installation | None) -> Finding:
    folder = checkout.build
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = sum(file.size for file in (*locked.lock.pip, *locked.lock.build)) * PYPI_GROWTH
    if free < needed and not installation:
        return Finding("FAIL", f"{folder}: {size(free)} free, {locked.name} needs {size(needed)}; free disk space")
    return Finding("ok", f"{folder}: {size(free)} free, {locked.name} needs {size(needed)}")


def _installation(locked: LockedEnvironment, found: Installation | None) -> Finding:
    if found is None:
        return Finding("warn", f"{locked.name} is not installed; run {as_typed('smoke', locked.name)}")
    if not found.current:
        return Finding("warn", f"{found.folder}: installed from an older lock; run {activation.remedy(found, locked)}")
    return Finding("ok", f"{locked.name} is installed in {found.folder}")


def _drift(locked: LockedEnvironment, found: Installation) -> Iterator[Finding]:
    """Yield how an installation differs from its lock; what is recorded as added is in order."""
    for text, in_order, remedy in activation.drift(found, locked):
        yield Finding("ok", text) if in_order else Finding("FAIL", f"{text}; {remedy}")
