"""What all steps share: reading a plan, refusing, and making a tree whose bytes depend on the step's input alone."""

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "opt/env"
SMOKEHOUSE = "opt/smokehouse"


def plan(context: Path) -> dict[str, Any]:
    """Read the plan.json of a step's build context."""
    found: dict[str, Any] = json.loads((context / "plan.json").read_text())
    return found


def refuse(message: str) -> NoReturn:
    """End the step, and with it the build, with `message` as its one line."""
    sys.exit(f"smokehouse: {message}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the locked one."""
    if (found := sha256(path)) != expected:
        refuse(f"{path.name}: expected SHA-256 {expected} as locked, found {found}; run nox -s build again")


def compile_python(out: Path, folders: list[Path]) -> None:
    """Compile all Python files in `folders`, which are below `out`, to bytecode that is never checked against its source.

    Checked bytecode contains the time of its source. Files are compiled in one thread, because what one thread leaves in
    memory affects the bytecode that the next one writes.
    """
    for folder in folders:
        for cache in sorted(folder.rglob("__pycache__")):
            shutil.rmtree(cache)
        compileall.compile_dir(
            folder,
            maxlevels=100,
            quiet=2,  # packages contain templates and tests that are invalid in this version of Python
            stripdir=str(out),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            workers=1,
        )


def normalize(out: Path, epoch: int, budget: int) -> None:
    """Set times to `epoch`, modes to 755 or 644 and owners to root for all of `out`; refuse more than `budget` bytes."""
    total = 0
    for folder, folders, names in os.walk(out, topdown=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
                total += path.stat().st_size
        for name in [*names, *folders]:
            os.utime(Path(folder, name), (epoch, epoch), follow_symlinks=False)
            os.chown(Path(folder, name), 0, 0, follow_symlinks=False)
        Path(folder).chmod(0o755)
    os.utime(out, (epoch, epoch))
    if total > budget:
        refuse(f"layer: expected at most {budget} bytes, found {total}; find the files that are unexpectedly large")
