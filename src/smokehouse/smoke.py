"""Starting the smoke test of an environment inside that environment."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from smokehouse import bundle, environment, halves, installation, lock
from smokehouse.errors import UserError
from smokehouse.house import House
from smokehouse.programs import run

DEFAULT = "qwen2.5-vl"
_VALIDATING = 60.0  # seconds


def smoke(house: House, name: str, options: Sequence[str]) -> None:
    """Become the smoke test of the environment `name`, run with `options`; installs the environment first.

    `--bundle DIR` among the options is ours: everything is then installed from that bundle, and no index is known.

    The smoke test owns its options and is asked about them before anything is downloaded; where they only ask for help,
    prints it and returns. Raises UserError.
    """
    promise = environment.read(house, name)
    place = lock.environment_lock(house, name)
    lock.check_environment(promise, place)
    options, folder = _without_bundle(options)
    bundled = bundle.read(folder, name, place.pins.parent) if folder else None
    command = ["-m", "smoke_tests", "--environment", name]
    command += ["--stack", str(house.environment(name) / "stack.toml"), "--lock", str(place.pins.parent)]
    if not any(option.split("=")[0] == "--report" for option in options):
        command += ["--report", str(house.root / "build" / "smoke" / name)]
    command += options
    environ = _environ()
    asked = run([sys.executable, *command, "--validate"], deadline=_VALIDATING, environ=environ, cwd=house.root)
    if asked.code:
        raise UserError(asked.stderr or f"{name}: the smoke test refused its options; see nox -s smoke -- --help")
    if {"-h", "--help"} & {*options}:
        print(f"{asked.stdout}\n  --bundle DIR          install the environment from this bundle alone, asking no index")
        return
    if bundled and "conda" in bundled.contents.halves:
        python = halves.install(house, name, house.bundled(name), bundled=bundled)
    else:
        python = installation.ensure(house, promise, bundled)
    sys.stdout.flush()
    os.chdir(house.root)
    # An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the smoke test itself.
    os.execve(python, [str(python), *command], environ)


def _without_bundle(options: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return `options` without `--bundle DIR`, and its folder; raises UserError."""
    rest: list[str] = []
    folder = None
    left = iter(options)
    for option in left:
        if option.split("=")[0] != "--bundle":
            rest.append(option)
        elif not (given := option.removeprefix("--bundle").removeprefix("=") or next(left, "")):
            raise UserError("--bundle wants a folder, made by nox -s bundle -- NAME DIR")
        else:
            folder = Path(given)
    return rest, folder


def _environ() -> dict[str, str]:
    """Return the environment without what would let packages from outside in, or keep `-m` from finding the tests."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "PYTHONNOUSERSITE": "1"}
