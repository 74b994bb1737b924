"""Starting the smoke test of an environment inside that environment."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.installs import bundle
from smokehouse.installs import prefix as halves
from smokehouse.installs import virtualenv as installation
from smokehouse.locks import check
from smokehouse.programs.process import run
from smokehouse.runs.options import pop_option

DEFAULT = "qwen2.5-vl"
_VALIDATING = 60.0  # seconds


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> None:
    """Become the smoke test of the environment `name`, run with `options`; installs the environment first.

    `--bundle DIR` among the options is ours: everything is then installed from that bundle, and no index is known.

    The smoke test owns its options and is asked about them before anything is downloaded; where they only ask for help,
    prints it and returns. Raises UserError.
    """
    options, folder = pop_option(options, "--bundle", "a folder, made by nox -s bundle -- NAME DIR")
    locked = check.load(checkout, name)
    bundled = bundle.read(Path(folder), locked) if folder else None
    command = ["-m", "smoke_tests", "--environment", name]
    command += ["--stack", str(checkout.environment(name) / "stack.toml"), "--lock", str(locked.files.folder)]
    if not any(option.split("=")[0] == "--report" for option in options):
        command += ["--report", str(checkout.root / "build" / "smoke" / name)]
    command += options
    environ = _environ()
    asked = run([sys.executable, *command, "--validate"], deadline=_VALIDATING, environ=environ, cwd=checkout.root)
    if asked.code:
        raise UserError(asked.stderr or f"{name}: the smoke test refused its options; see nox -s smoke -- --help")
    if {"-h", "--help"} & {*options}:
        print(f"{asked.stdout}\n  --bundle DIR          install the environment from this bundle alone, asking no index")
        print("  --image REF           prove this image instead of an environment installed here")
        return
    if bundled and bundled.has_conda:
        python = halves.install(locked, checkout.bundled(name), bundled=bundled)
    else:
        python = installation.ensure(checkout, locked, bundled)
    sys.stdout.flush()
    os.chdir(checkout.root)
    # An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the smoke test itself.
    os.execve(python, [str(python), *command], environ)


def _environ() -> dict[str, str]:
    """Return the environment without what would let packages from outside in, or keep `-m` from finding the tests."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "PYTHONNOUSERSITE": "1"}
