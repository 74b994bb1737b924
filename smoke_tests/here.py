"""A run without a lock: what is installed where this Python looks, whoever installed it.

Nothing is written into that environment: no package is installed, and no bytecode.
"""

import importlib.metadata
import os
import sys
from dataclasses import replace
from pathlib import Path

from smoke_tests import families
from smoke_tests.options import InputError, Options

PYTHON = (3, 10)
TORCH = (2, 4)
# What the checks import; the rest comes with these.
REQUIRED = ("torch", "transformers", "deepspeed", "accelerate", "safetensors", "tokenizers", "numpy", "pillow", "packaging")


def leave_no_bytecode() -> None:
    """Let neither this process nor those that it starts write bytecode beside the modules that they import."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def complete(options: Options) -> Options:
    """Return `options` with the model class and the expectations that fit the installed versions. Imports no torch.

    Of an environment with a lock, its own versions count, and what its stack.toml has in place of the usual expectations.

    Raises:
        InputError: A package that every run requires is not installed, is older than what these tests can run with, or is not
            in the lock.
    """
    if options.lock is not None:
        return _of_lock(options, options.lock)
    missing = [name for name in REQUIRED if not _is_installed(name)]
    if missing:
        raise InputError(
            f"{sys.prefix}: expected {', '.join(REQUIRED)}, found no {', '.join(missing)}; install them there, or give another "
            "environment with --python or --prefix"
        )
    from packaging.version import InvalidVersion, Version

    from smoke_tests import measured

    try:
        versions = {name: Version(importlib.metadata.version(name)) for name in measured.RANGES}
    except InvalidVersion as error:
        raise InputError(f"{sys.prefix}: invalid metadata: {error}; reinstall that package") from error
    if versions["torch"].release < TORCH:
        oldest = ".".join(map(str, TORCH))
        raise InputError(f"{sys.prefix}: expected torch {oldest} or later, found {versions['torch']}; upgrade it")
    family = families.get(options.stack["model"]["family"])
    return replace(options, stack=measured.stack(family, versions), beyond=tuple(measured.beyond(versions)))


def _of_lock(options: Options, lock: Path) -> Options:
    from smoke_tests import measured

    family, file = families.get(options.stack["model"]["family"]), lock / "requirements.txt"
    try:
        versions = measured.pinned(file.read_text())
        expectations = measured.overridden(family, versions, options.stack["expectations"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: expected pinned versions of {', '.join(measured.RANGES)}, found {error}; lock it again"
        ) from error
    return replace(options, stack=options.stack | {"expectations": expectations})


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
