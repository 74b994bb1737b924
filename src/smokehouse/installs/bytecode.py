"""Compiled files that were cut while a disk was full, and which Python then fails to load instead of compiling them again.

CPython 3.11 and older take a short write for a whole one. See: https://github.com/python/cpython/issues/126606
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import run

_DEADLINE = 600.0  # seconds
_BLOCK = 512  # bytes; a write that ends early ends with a block, and those of all file systems are multiples of it
_NO_UTF8 = re.compile("[\ud800-\udfff]")  # no module has such a name
_SHOWN = 3  # paths that a message lists

# Prints which compiled files it cannot load, each with a null character; with `repair`, those that it cannot compile again.
# Files of other versions of Python are left out, which this one compiles again itself.
_PROGRAM = """
import importlib.util, marshal, os, py_compile, sys

MODES = {
    b"\\1\\0\\0\\0": py_compile.PycInvalidationMode.UNCHECKED_HASH,
    b"\\3\\0\\0\\0": py_compile.PycInvalidationMode.CHECKED_HASH,
}

def is_cut(path):
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] != importlib.util.MAGIC_NUMBER[:len(data)]:
        return False
    try:
        marshal.loads(memoryview(data)[16:])
    except (EOFError, ValueError, TypeError):
        return True
    return False

def is_repaired(path):
    with open(path, "rb") as file:
        flags = file.read(8)[4:]  # how it is compared with its source
    os.unlink(path)
    try:
        source = importlib.util.source_from_cache(path)
        if importlib.util.cache_from_source(source) != path:
            return True  # of another level of optimization, which Python writes when it is used
        py_compile.compile(source, path, doraise=True, invalidation_mode=MODES.get(flags))
        if not is_cut(path):
            return True
        os.unlink(path)
    except (OSError, ValueError, py_compile.PyCompileError):
        pass
    return False

found = [path for path in map(os.fsdecode, sys.stdin.buffer.read().split(b"\\0")) if is_cut(path)]
if sys.argv[1] == "repair":
    found = [path for path in found if not is_repaired(path)]
sys.stdout.buffer.write(b"".join(os.fsencode(path) + b"\\0" for path in found))
"""


def cut(folder: Path, python: str, *, contents: bool) -> list[Path]:
    """Return the compiled files in an environment of `python` (such as 3.11) that its Python cannot load; raises UserError.

    Without `contents`, only files that end with a block are read: of 14,000, about 30.
    """
    return _examine(folder, python, "find", contents=contents)


def repair(folder: Path, python: str) -> None:
    """Compile again what was cut in an environment; raises UserError where that fails, and then nothing cut is left there."""
    if left := _examine(folder, python, "repair", contents=False):
        shown = ", ".join(str(path.relative_to(folder)) for path in left[:_SHOWN])
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise UserError(
            f"{folder}: expected whole compiled files, found {shown}{more} cut, as by a disk that is full; free some space and "
            f"run it again"
        )


def _examine(folder: Path, python: str, what: str, *, contents: bool) -> list[Path]:
    paths = _compiled(folder / "lib" / f"python{python}", contents=contents)
    if not paths:
        return []
    variables = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}  # which py_compile obeys
    command = [str(folder / "bin" / "python"), "-I", "-S", "-B", "-c", _PROGRAM, what]
    try:
        ended = run(command, deadline=_DEADLINE, environ=variables, cwd=folder, stdin="\0".join(paths))
    except OSError as broken:
        raise UserError(f"{folder / 'bin' / 'python'}: does not run ({broken.strerror}); remove that folder") from None
    if ended.code:
        said = " ".join(ended.stderr.split()[-20:]) or f"exit code {ended.code}"
        raise UserError(f"{folder / 'bin' / 'python'}: cannot read the compiled files ({said}); remove that folder")
    return [Path(path) for path in ended.stdout.split("\0") if path]


def _compiled(folder: Path, *, contents: bool) -> Sequence[str]:
    """Return the paths of the compiled files below `folder`; without `contents`, of those that end with a block."""
    paths = (f"{place}/{name}" for place, _, names in os.walk(folder) for name in names if name.endswith(".pyc"))
    return sorted(path for path in paths if not _NO_UTF8.search(path) and _may_be_cut(path, contents=contents))


def _may_be_cut(path: str, *, contents: bool) -> bool:
    found = os.lstat(path)
    return stat.S_ISREG(found.st_mode) and (contents or found.st_size % _BLOCK == 0)
