"""Measure one cell: install its packages, run the smoke test with them, and read what happened, whatever it was.

A cell that cannot be installed, crashes or hangs is a result. What says nothing about the versions, such as an index that
cannot be reached, is an error.
"""

import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.environments.inputs import Inputs
from smokehouse.environments.requirement import parse
from smokehouse.errors import UserError
from smokehouse.locks.solvers import UnsolvableError
from smokehouse.locks.solvers.pip import compile_pins
from smokehouse.matrix import outcome
from smokehouse.matrix.grid import Definition, public, release
from smokehouse.matrix.model import CORE, STAGES, Cell, Machine, Stage, Versions, line
from smokehouse.programs import uv
from smokehouse.programs.process import run
from smokehouse.runs import here
from smokehouse.runs.local import place_of_smoke_test
from smokehouse.runs.report import Report, read_any
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space

# What is run, of what the version decides one of two; the smoke test adds what these need.
ONLY = "load,weights,train,parity,resume,auto classes,later key layout,both key layouts"
ENVIRONMENT = "env"  # the folder of a cell's packages, in its own
# Source distributions of the grid are built with these, at the cut-off.
_BUILD = ("setuptools", "wheel")
_EXPLAIN_DEADLINE = 60.0  # seconds
_CHECK_TIMEOUT = 300.0  # seconds of one check
_REFUSED = 2  # the smoke test's exit code where it cannot run in an environment
# What a cell needs that others do not share: files of its own, and what the smoke test writes. Bytes.
_SPACE = 3 << 30
_START_DEADLINE = 60.0  # seconds
_VERSIONS = f"""
import json, sys
from importlib.metadata import distributions
versions = {{one.metadata["Name"]: one.version for one in distributions()}}
print(json.dumps(["%d.%d" % sys.version_info[:2], {{name: versions.get(name, "none") for name in {CORE!r}}}]))
"""
_DIRECTORY = 0o40000  # in the mode of a file


@dataclass(frozen=True)
class Run:
    """How the smoke test is run: on a device (auto, cpu or cuda), and for how many seconds at most."""

    device: str = "auto"
    deadline: float = 1800.0


@dataclass(frozen=True)
class _Attempt:
    """One run of the smoke test: its report, or in `broken` why there is none."""

    report: Report | None
    broken: Stage | None = None
    refused: bool = False


def measure(
    checkout: Checkout, definition: Definition, versions: Versions, folder: Path, how: Run, pass_fds: Sequence[int] = ()
) -> Cell:
    """Return the cell of `versions`, measured with its environment and evidence in `folder`.

    The programs that write there keep the file descriptors `pass_fds`, such as that of a lock, open. Raises UserError where
    nothing is learned about the versions, such as for a machine with too little memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    require_free_space(folder, _SPACE, f"measure {versions.words}")
    cell = empty(versions, definition.python, how.device)
    began = time.monotonic()
    try:
        python = _install(definition, versions, folder, pass_fds)
    except UnsolvableError as wrong:
        return _with_both(cell, Stage(verdict="not installable", error=line(wrong)), time.monotonic() - began)
    installed = time.monotonic() - began
    own = _own_bytes(folder / ENVIRONMENT)
    cell = cell.model_copy(update={"install_seconds": round(installed, 1), "disk_bytes": own, "lock": _locked(folder)})
    return prove(checkout, definition.family, cell, python, folder, how, pass_fds)


def prove(
    checkout: Checkout, family: str, cell: Cell, python: Path, folder: Path, how: Run, pass_fds: Sequence[int] = ()
) -> Cell:
    """Return `cell` with what the smoke test says of the environment of `python`; evidence goes to `folder`."""
    began = time.monotonic()
    attempt = _attempt(checkout, family, python, folder, STAGES, how, pass_fds)
    if attempt.refused and attempt.broken:
        return _with_both(cell, attempt.broken, cell.install_seconds, time.monotonic() - began)
    reports = [attempt.report] if attempt.report else []
    _require_same(cell, reports)
    found = outcome.checks([report.fields for report in reports])
    broken: dict[int, Stage] = {}
    for number in STAGES:
        if not outcome.is_open(found, number):
            continue
        alone = _attempt(checkout, family, python, folder, (number,), how, pass_fds)
        reports += [alone.report] if alone.report else []
        _require_same(cell, reports)
        broken |= {number: alone.broken} if alone.broken else {}
    found = outcome.checks([report.fields for report in reports])
    stages = {f"zero{number}": broken.get(number) or outcome.stage(found, number) for number in STAGES}
    changed: dict[str, Any] = {"checks": found, "run_seconds": round(time.monotonic() - began, 1), **stages}
    return cell.model_copy(update=changed | (_circumstances(reports[0].fields) if reports else {}))


def _require_same(cell: Cell, reports: Sequence[Report]) -> None:
    """Raise UserError where a report is of other versions than its cell: it says nothing of these."""
    for fields in (report.fields for report in reports):
        imported, installed = fields["versions"], (fields.get("installed") or {}).get("packages", {})
        for name in CORE:
            expected = getattr(cell.versions, name)
            found = [
                str(versions.get(name) or "none")
                for versions in (installed, imported)
                if versions is installed or name in versions
            ]
            if different := [text for text in found if public(text) != expected]:
                raise UserError(
                    f"{name}: expected {expected} in the report of its cell, found {different[0]}; measure it again"
                )


def _circumstances(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report says of where it was made."""
    machine = {name: fields["machine"][name] for name in ("architecture", "cpu", "cpus", "memory_bytes")}
    return {
        "device": fields["device"],
        "backend": fields["backend"],
        "precision": fields["precision"],
        "ranks": fields["world_size"],
        "machine": Machine(**machine),
        "lock": fields["installed"]["packages"],
    }


def empty(versions: Versions, python: str, device: str) -> Cell:
    """Return a cell of which nothing is known but where it is measured."""
    unknown = Stage(verdict="fails", error="nothing was run")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return Cell(
        versions=versions,
        python=python,
        device="cuda" if device == "cuda" else "cpu",
        backend="",
        precision="",
        ranks=0,
        zero2=unknown,
        zero3=unknown,
        checks=[],
        install_seconds=0.0,
        run_seconds=0.0,
        disk_bytes=0,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine(
            architecture=platform.machine(),
            cpu=line(cpu[1] if cpu else platform.processor(), 100),
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=memory,
        ),
        lock={},
    )


def measure_here(checkout: Checkout, family: str, python: Path, folder: Path, how: Run, pass_fds: Sequence[int] = ()) -> Cell:
    """Return the cell of what is installed where the interpreter `python` looks; evidence goes to `folder`.

    Raises UserError where a package that makes a cell is missing, or is no release.
    """
    environ = here.variables_in(python.parents[1])
    ended = run([python, "-I", "-B", "-c", _VERSIONS], deadline=_START_DEADLINE, environ=environ, cwd=Path("/"))
    try:
        own, found = json.loads(ended.stdout)
        versions = Versions(**{name: release(public(found[name])).public for name in CORE})
    except (ValueError, TypeError) as wrong:
        raise UserError(
            f"{python}: expected releases of {', '.join(CORE)}, found others ({line(wrong)}); install them"
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return prove(checkout, family, empty(versions, own, how.device), python, folder, how, pass_fds)


def _with_both(cell: Cell, stage: Stage, install: float, ran: float = 0.0) -> Cell:
    seconds = {"install_seconds": round(install, 1), "run_seconds": round(ran, 1)}
    return cell.model_copy(update={"zero2": stage, "zero3": stage, **seconds})


def _install(definition: Definition, versions: Versions, folder: Path, pass_fds: Sequence[int]) -> Path:
    """Install a cell's packages in `folder`/env, and return its Python.

    Raises UnsolvableError where these versions cannot be installed together, and UserError for any other reason.
    """
    pins, build_pins = folder / "requirements.txt", folder / "build-requirements.txt"
    requirements = tuple(parse(text) for text in (*versions.pins, *definition.packages))
    inputs = Inputs(versions.words, requirements, definition.python, definition.platform, definition.cutoff)
    build = replace(inputs, requirements=tuple(parse(text) for text in _BUILD))
    files.write(pins, compile_pins(inputs, "--generate-hashes", "--no-annotate"))
    files.write(build_pins, compile_pins(build, "--generate-hashes", "--no-annotate", cached=True))
    environment = folder / ENVIRONMENT
    uv.create_environment(environment, definition.python)
    try:
        uv.install(environment, pins, build_pins, ["deepspeed"], throwaway=True, pass_fds=pass_fds)
    except UserError as wrong:
        if re.search(r"Failed to (?:download and )?build", str(wrong)):
            raise UnsolvableError(str(wrong)) from None
        raise
    return environment / "bin" / "python"


def _locked(folder: Path) -> dict[str, str]:
    """Return the version of each package that the requirements of a cell pin."""
    return dict(re.findall(r"^([\w.-]+)==([\w.!+-]+)", (folder / "requirements.txt").read_text(), re.MULTILINE))


def _own_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder that are not hard links of the cache's."""
    found = (entry.lstat() for entry in folder.rglob("*"))
    return sum(one.st_blocks * 512 for one in found if one.st_nlink == 1 or one.st_mode & _DIRECTORY)


def _attempt(
    checkout: Checkout,
    family: str,
    python: Path,
    folder: Path,
    stages: Sequence[int],
    how: Run,
    pass_fds: Sequence[int],
) -> _Attempt:
    """Run the smoke test of some ZeRO stages in the environment of `python`, with its report and output in `folder`."""
    name = "report" if len(stages) > 1 else f"report-zero{stages[0]}"
    place, log = place_of_smoke_test(checkout), folder / f"{name}.log"
    command: list[str | Path] = [
        python,
        "-m",
        "smoke_tests",
        f"--here={family}",
        "--report",
        str(folder / name),
        "--only",
        ONLY,
    ]
    command += ["--device", how.device, "--timeout", f"{min(_CHECK_TIMEOUT, how.deadline):.0f}"]
    command += [] if len(stages) > 1 else ["--zero", str(stages[0])]
    try:
        environ = here.variables_in(python.parents[1])
        ended = run(command, deadline=how.deadline, environ=environ, cwd=place, pass_fds=pass_fds)
    except UserError:
        return _Attempt(None, Stage(verdict="hangs", error=f"the smoke test had not ended after {how.deadline:.0f} s"))
    files.write(log, ended.stdout + ended.stderr)
    if (folder / name / "report.json").is_file():
        report = read_any(checkout, folder / name)
        if not ended.code or report.fields["verdict"] != "passed":
            return _Attempt(report)
    last = next((text for text in reversed(ended.stderr.splitlines()) if text.strip()), "no message")
    if ended.code == _REFUSED:
        error = _of_versions(last, python.parents[1])
        return _Attempt(None, Stage(verdict="fails", error=error, failure=_explain(checkout, log)), refused=True)
    error = line(f"the smoke test ended with {_code(ended.code)}: {last}")
    return _Attempt(None, Stage(verdict="crashes", error=error, failure=_explain(checkout, log)))


def _of_versions(said: str, prefix: Path) -> str:
    """Return why the smoke test cannot run with the versions in `prefix`; raises UserError where that is about the machine."""
    found = said.removeprefix(f"{prefix}: ")
    if found == said and not re.match(r"model family |smoke: (?:Import|ModuleNotFound)Error: ", said):
        raise UserError(said)
    return line(found)


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _explain(checkout: Checkout, log: Path) -> str:
    """Return the name of the known failure in a log, by the loader's table; empty without one."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUTF8": "1", "PYTHONPATH": str(checkout.loader())}
    command = [sys.executable, "-B", "-m", "smokehouse_loader", "explain", str(log), "--json"]
    ended = run(command, deadline=_EXPLAIN_DEADLINE, environ=environ, cwd=log.parent)
    try:
        found = json.loads(ended.stdout)["found"]
        return str(found[0]["failure"]["name"]) if found else ""
    except (ValueError, KeyError, IndexError):
        return ""
