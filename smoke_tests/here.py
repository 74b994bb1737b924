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
    found = {name: _installed_version(name) for name in REQUIRED}
    if missing := [name for name, version in found.items() if version is None]:
        raise InputError(
            f"{sys.prefix}: expected {', '.join(REQUIRED)}, found no {', '.join(missing)}; install them there, or give another "
            "environment with --python or --prefix"
        )
    if unreadable := [name for name, version in found.items() if not version]:
        raise InputError(
            f"{sys.prefix}: expected a version in the metadata of {', '.join(unreadable)}, found none; reinstall it"
        )
    from packaging.version import InvalidVersion, Version

    from smoke_tests import measured

    try:
        versions = {name: Version(found[name] or "") for name in measured.RANGES}
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


def _installed_version(name: str) -> str | None:
    """Return the version of a distribution, None where it is not installed, empty where its metadata says none."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return None
    except (KeyError, OSError, ValueError):  # no such line, or a file that is no text
        return ""
