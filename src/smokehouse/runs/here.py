"""Run the smoke test in an environment that somebody else installed, without a lock and without changing it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.programs.process import run
from smokehouse.runs.local import absolute_paths, place_of_smoke_test, validate, variables
from smokehouse.runs.options import pop_option, report_name

OLDEST_PYTHON = (3, 10)  # that smoke_tests and smokehouse_loader run with
_START_DEADLINE = 60.0  # seconds
_WHO = "import json, sys; print(json.dumps([list(sys.version_info[:2]), sys.prefix]))"


def smoke_here(checkout: Checkout, family: str | None, options: Sequence[str]) -> NoReturn:
    """Replace this process with the smoke test of what is installed, for a model `family` or the default one.

    `--python PATH` or `--prefix DIR` among the options specify the environment, by default that of the first python on PATH.
    Raises UserError.
    """
    options, python = pop_option(options, "--python", "the path of an interpreter")
    options, prefix = pop_option(options, "--prefix", "a folder with bin/python")
    interpreter, folder = find_interpreter("smoke", python, prefix)
    place = place_of_smoke_test(checkout)
    here = ["--here"] if family is None else [f"--here={family}"]
    command = ["-m", "smoke_tests", *here]
    if not any(option.split("=")[0] == "--report" for option in options):
        command += ["--report", str(checkout.build / "smoke" / report_name("here", options))]
    command += absolute_paths(options, place)
    validate(command, "here", place)
    sys.stdout.flush()
    os.chdir(place)
    os.execve(interpreter, [str(interpreter), *command], variables_in(folder))


def find_interpreter(verb: str, python: str | None, prefix: str | None) -> tuple[Path, Path]:
    """Return the interpreter of an environment and its prefix: `python`, that in `prefix`, or the first one on PATH.

    Raises UserError where it is none, or too old; messages call the command `verb`.
    """
    if python and prefix:
        raise UserError(f"{verb}: expected --python or --prefix, found both; give one of {python} and {prefix}")
    interpreter = Path(prefix, "bin", "python") if prefix else Path(python) if python else _first_python()
    interpreter = interpreter.absolute()  # a link, of which a virtual environment's Python is one, is not followed
    return interpreter, _prefix_of(interpreter)


def variables_in(folder: Path) -> dict[str, str]:
    """Return the environment variables of a smoke test in the environment in `folder`, which it must not change."""
    environ = variables() | {"PYTHONDONTWRITEBYTECODE": "1"}
    return environ | {"PATH": os.pathsep.join([str(folder / "bin"), environ.get("PATH", os.defpath)])}


def _first_python() -> Path:
    """Return the first Python on PATH that is not the one Smokehouse itself runs in; raises UserError."""
    own = Path(sys.executable).parent
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        for name in ("python", "python3"):
            candidate = Path(folder or ".", name)
            if Path(folder or ".").absolute() != own and os.access(candidate, os.X_OK) and candidate.is_file():
                return candidate
    raise UserError("--here: expected a python on PATH, found none; activate an environment, or give --python or --prefix")


def _prefix_of(python: Path) -> Path:
    """Return the prefix of an interpreter; raises UserError where it is none, or too old."""
    remedy = f"see {as_typed('smoke', '--help')}"
    if not os.access(python, os.X_OK) or not python.is_file():
        raise UserError(f"{python}: expected a Python interpreter, found none; {remedy}")
    try:
        ended = run([python, "-I", "-B", "-c", _WHO], deadline=_START_DEADLINE, environ=variables(), cwd=Path("/"))
        version, prefix = json.loads(ended.stdout)
    except (OSError, ValueError) as error:
        raise UserError(f"{python}: expected a Python interpreter, found another program; {remedy}") from error
    if tuple(version) < OLDEST_PYTHON:
        oldest, found = (".".join(map(str, number)) for number in (OLDEST_PYTHON, version))
        raise UserError(f"{python}: expected Python {oldest} or later, found {found}; give another environment")
    return Path(prefix)
