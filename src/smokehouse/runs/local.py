"""Run the smoke test of an environment in that environment, installed on this machine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.installs import bundle, prefix, virtualenv
from smokehouse.programs.process import run
from smokehouse.runs.options import pop_option

DEFAULT = "qwen2.5-vl"
_VALIDATE_DEADLINE = 60.0  # seconds


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> None:
    """Replace this process with the smoke test of the environment `name`, run with `options`; installs it first.

    `--bundle DIR` among the options belongs to the builder: everything is then installed from that bundle, without an
    index. The smoke test validates the others before anything is downloaded; where they request help, it is printed and
    the function returns. Raises UserError.
    """
    options, folder = pop_option(options, "--bundle", "a folder, made by nox -s bundle -- NAME DIR")
    locked = locks.load(checkout, name)
    bundled = bundle.read(Path(folder), locked) if folder else None
    command = ["-m", "smoke_tests", "--environment", name]
    command += ["--stack", str(checkout.environment(name) / "stack.toml"), "--lock", str(locked.files.folder)]
    if not any(option.split("=")[0] == "--report" for option in options):
        command += ["--report", str(checkout.root / "build" / "smoke" / name)]
    command += options
    environ = _environ()
    validated = run([sys.executable, *command, "--validate"], deadline=_VALIDATE_DEADLINE, environ=environ, cwd=checkout.root)
    if validated.code:
        raise UserError(validated.stderr or f"{name}: the smoke test refused its options; see nox -s smoke -- --help")
    if {"-h", "--help"} & {*options}:
        print(f"{validated.stdout}\n  --bundle DIR          install the environment from this bundle, without an index")
        print("  --image REF           run the smoke test in this image instead")
        return
    if bundled and bundled.has_conda:
        python = prefix.install(locked, checkout.bundled(name), bundled=bundled)
    else:
        python = virtualenv.ensure(checkout, locked, bundled)
    sys.stdout.flush()
    os.chdir(checkout.root)
    # An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the smoke test itself.
    os.execve(python, [str(python), *command], environ)


def _environ() -> dict[str, str]:
    """Return this process's environment variables without those that add foreign packages or hide the smoke test."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "PYTHONNOUSERSITE": "1"}
