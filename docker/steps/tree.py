"""What all steps share: reading a plan, refusing, and making a tree whose bytes depend on the step's input alone."""

import gc
import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import stat
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

PREFIX = "opt/env"
SMOKEHOUSE = "opt/smokehouse"
# What marshal writes of a code object, in any version of Python.
_CODE = (
    *("co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_filename", "co_name"),
    *("co_qualname", "co_linetable", "co_exceptiontable"),
)
_parts = attrgetter(*(name for name in _CODE if hasattr(CodeType, name)))
_NESTED = (tuple, frozenset)


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


def write(path: str, content: bytes) -> None:
    """Write a file, in a folder that is made if necessary."""
    try:
        file = open(path, "wb")  # noqa: PTH123, SIM115 - see _content; it is closed below
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # another process may have just made it
        file = open(path, "wb")  # noqa: PTH123, SIM115 - as above
    with file:
        file.write(content)


def compile_python(out: Path, folders: list[Path], earlier: Path | None = None) -> None:
    """Compile all Python files in `folders`, which are below `out`, to bytecode that is never checked against its source.

    Checked bytecode contains the time of its source. The bytecode of a file depends on its content, its path and this
    interpreter alone, so that of a file that is the same in `earlier`, a tree that this step made before, is taken from there.
    """
    found = []
    for place, below, names in (walked for folder in folders for walked in os.walk(folder)):
        if "__pycache__" in below:
            shutil.rmtree(f"{place}/__pycache__")
            below.remove("__pycache__")
        sources = (f"{place}/{name}" for name in names if name.endswith(".py"))
        found += [(os.stat(path).st_size, path) for path in sources if os.path.isfile(path)]  # noqa: PTH113, PTH116 - see _content
    largest_first = [path for _, path in sorted(found, reverse=True)]
    workers, before = os.cpu_count() or 1, str(earlier) if earlier else None
    _in_processes([partial(_compile_files, largest_first[at::workers], str(out), before) for at in range(workers)])


def _in_processes(works: list[Callable[[], None]]) -> None:
    """Run each of `works` in a copy of this process, and wait for all; end the step where one fails."""
    children = []
    for work in works:
        child = os.fork()
        if not child:
            status = 1
            try:
                work()
                status = 0
            except SystemExit as refused:
                print(refused, file=sys.stderr)
            except BaseException:  # noqa: BLE001 - it is printed, and the step then ends
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)  # not the end of the program, which is its parent's
        children.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]  # of all of them, before this ends
    if killed := [-code for code in ended if code < 0]:
        refuse(f"bytecode: signal {killed[0]} ended a process that compiles; free memory and build again")
    if any(ended):
        sys.exit(1)  # it has said why


def _compile_files(sources: list[str], out: str, earlier: str | None) -> None:
    warnings.simplefilter("ignore")
    gc.disable()  # it would look through code objects, which have no cycles
    for number in range(256):
        sys.intern(chr(number))  # they are shared by all code of a process, and written otherwise once a name is one of them
    for source in sources:
        try:
            _compile_file(source, out, earlier)
        except OSError as broken:
            refuse(f"{source[len(out) :]}: cannot be compiled ({broken.strerror}); free disk space and build again")


def _compile_file(source: str, out: str, earlier: str | None) -> None:
    content = _content(source)
    name, compiled = source[len(out) :], importlib.util.cache_from_source(source)
    data = b""
    if earlier and _content(earlier + name) == content and not Path(source).is_symlink():
        data = _content(earlier + compiled[len(out) :])
    if data or (data := _bytecode(content, name)):
        write(compiled, data)


def _content(path: str) -> bytes:
    """Return what is in a file, nothing where there is none. A Path for each of thousands would take as long as the rest."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see above
            return file.read()
    except FileNotFoundError:
        return b""


def _bytecode(content: bytes, name: str) -> bytes:
    """Return the bytecode of a file, empty where it is invalid, as templates and tests in packages are.

    marshal writes an object in another way where nothing else refers to it, and what a process compiled before can refer to a
    string. So a reference to everything in the code is held.

    See: https://github.com/python/cpython/blob/3.11/Python/marshal.c and https://peps.python.org/pep-0552/
    """
    try:
        code = compile(content, name, "exec", dont_inherit=True)
    except Exception:  # noqa: BLE001 - whatever it is, importing the file says so
        return b""
    held = _everything_in(code)
    unchecked = (1).to_bytes(4, "little")
    data = b"".join([importlib.util.MAGIC_NUMBER, unchecked, importlib.util.source_hash(content), marshal.dumps(code)])
    del held
    return data


def _everything_in(code: CodeType) -> list[object]:
    found: list[object] = [code]
    for each in found:  # which grows
        if isinstance(each, CodeType):
            found += _parts(each)
        elif isinstance(each, _NESTED):
            found += each
    return found


def normalize(out: Path, epoch: int, budget: int) -> None:
    """Set times to `epoch`, modes to 755 or 644 and owners to root for all of `out`; refuse more than `budget` bytes."""
    total = 0
    for folder, folders, names in os.walk(out, topdown=False):
        for name in [*names, *folders]:
            path = f"{folder}/{name}"
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                os.chmod(path, 0o755 if found.st_mode & 0o100 else 0o644)  # noqa: PTH101 - a Path would take as long
                total += found.st_size
            os.utime(path, (epoch, epoch), follow_symlinks=False)
            os.chown(path, 0, 0, follow_symlinks=False)
        Path(folder).chmod(0o755)
    os.utime(out, (epoch, epoch))
    if total > budget:
        refuse(f"layer: expected at most {budget} bytes, found {total}; find the files that are unexpectedly large")
