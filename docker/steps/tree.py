"""What all steps share: reading a plan, refusing, and making a tree whose bytes depend on the step's input alone."""

import compileall
import hashlib
import importlib.util
import json
import marshal
import os
import py_compile
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "opt/env"
SMOKEHOUSE = "opt/smokehouse"
_BLOCK = 512  # bytes; those of all file systems are multiples of it
_PART = 128  # files that one process compiles; the bytecode depends on it


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

    Checked bytecode contains the time of its source. What a process compiled before affects the bytecode that it writes next,
    so each compiles a part that depends on nothing but the files, however many processors there are.
    """
    for folder in folders:
        for cache in sorted(folder.rglob("__pycache__")):
            shutil.rmtree(cache)
    sources = sorted(str(path) for folder in folders for path in folder.rglob("*.py") if path.is_file())
    parts = [sources[at : at + _PART] for at in range(0, len(sources), _PART)]
    command = [sys.executable, "-I", "-S", "-B", __file__, str(out)]

    def compile_part(part: list[str]) -> None:
        ended = subprocess.run(command, input="\0".join(part).encode(), stdout=subprocess.DEVNULL)
        if ended.returncode:
            sys.exit(ended.returncode)  # it has said why

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(compile_part, parts))


def _compile_files(out: str, sources: list[str]) -> None:
    for source in sources:
        compileall.compile_file(
            source,
            quiet=2,  # packages contain templates and tests that are invalid in this version of Python
            stripdir=out,
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    for source in sources:  # not before all are compiled, as it could change the bytecode of the next one
        try:
            _require_whole(source)
        except (OSError, EOFError, ValueError, TypeError) as broken:
            refuse(f"{source.removeprefix(out)}: cannot be compiled ({broken}); free disk space and build again")


def _require_whole(source: str) -> None:
    """Raise an error where compileall, which is silent, did not write what it compiled, or a full disk cut it.

    A write that ends early ends with a block. See: https://github.com/python/cpython/issues/126606
    """
    compiled = Path(importlib.util.cache_from_source(source))
    if compiled.exists():
        if compiled.stat().st_size % _BLOCK == 0:
            marshal.loads(compiled.read_bytes()[16:])  # noqa: S302 - written a moment ago
        return
    data = Path(source).read_bytes()
    try:
        compile(data, source, "exec", dont_inherit=True)
    except Exception:  # noqa: BLE001 - whatever compileall met, the file is no module of this version of Python
        return
    raise OSError("its bytecode was not written")


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


if __name__ == "__main__":
    _compile_files(sys.argv[1], sys.stdin.read().split("\0"))
