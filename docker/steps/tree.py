"""Functions of all steps: read the plan, and leave a tree whose bytes depend on the inputs alone."""

import compileall
import json
import os
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "opt/env"
OURS = "opt/smokehouse"


def plan(folder: Path) -> dict[str, Any]:
    """Read the plan.json of a step."""
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return found


def refuse(message: str) -> NoReturn:
    """End the build with a message of one line."""
    sys.exit(f"smokehouse: {message}")


def compile_python(out: Path, folders: list[Path]) -> None:
    """Compile all Python in `folders`, which are below `out`, to bytecode that is never checked against its source.

    Checked bytecode contains the source's time. One file at a time: what else a thread compiled shows in the bytecode.
    """
    for folder in folders:
        for cache in sorted(folder.rglob("__pycache__")):
            shutil.rmtree(cache)
        compileall.compile_dir(
            folder,
            maxlevels=100,
            quiet=2,  # packages contain templates and tests that are not valid in this version of Python
            stripdir=str(out),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            workers=1,
        )


def settle(out: Path, epoch: int, budget: int) -> None:
    """Set times to `epoch`, the owner to root and modes to 644 or 755 in all of `out`; refuse more than `budget` bytes."""
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
        refuse(f"a layer of {total} bytes, its budget is {budget}; look at what swells it")
