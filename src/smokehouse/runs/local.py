"""Run the smoke test of an environment in that environment, installed on this machine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.installs import activation, bundle, loader, prefix, virtualenv
from smokehouse.locks import LockedEnvironment
from smokehouse.programs.process import run
from smokehouse.runs import targets
from smokehouse.runs.options import pop_option, report_name

_VALIDATE_DEADLINE = 60.0  # seconds

# What smoke_tests reads: the beginning of its usage line, and what to print when it has ended.
_PROG = "SMOKEHOUSE_PROG"
_HINT = "SMOKEHOUSE_HINT"


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> None:
    """Replace this process with the smoke test of the environment `name`, run with `options`; installs it first.

    `--bundle DIR` among the options belongs to the builder: everything is then installed from that bundle, without an
    index. The smoke test validates the others before anything is downloaded. Raises UserError.
    """
    options, chosen = pop_option(options, "--prefix", f"a folder, made by {as_typed('install', 'NAME', 'PREFIX')}")
    options, folder = pop_option(options, "--bundle", f"a folder, made by {as_typed('bundle', 'NAME', 'DIR')}")
    if chosen and folder:
        raise UserError(f"smoke: expected --prefix or --bundle, found both; {chosen} is proven as it is, without installing")
    locked = locks.load(checkout, name)
    installed = installed_in(checkout, Path(chosen), locked) if chosen else None
    bundled = bundle.read(Path(folder), locked) if folder else None
    place = place_of_smoke_test(checkout)
    command = ["-m", "smoke_tests", "--environment", name]
    command += ["--stack", str(checkout.environment(name) / "stack.toml"), "--lock", str(locked.files.folder)]
    if not any(option.split("=")[0] == "--report" for option in options):
        command += ["--report", str(checkout.build / "smoke" / report_name(name, options))]
    command += absolute_paths(options, place)
    validate(command, name, place)
    if installed:
        python = installed
    elif bundled and bundled.has_conda:
        python = prefix.install(checkout, locked, checkout.bundled(name), bundled=bundled)
    else:
        python = virtualenv.ensure(checkout, locked, bundled)
    sys.stdout.flush()
    os.chdir(place)
    # An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the smoke test itself.
    os.execve(
        python, [str(python), *command], {**variables(), _HINT: activation.hint(python.parents[1], name, prefix=bool(chosen))}
    )


def validate(command: Sequence[str], name: str, place: Path) -> None:
    """Raise UserError where the smoke test refuses the options in `command`; nothing is installed for that."""
    validated = run([sys.executable, *command, "--validate"], deadline=_VALIDATE_DEADLINE, environ=variables(), cwd=place)
    if validated.code:
        raise UserError(validated.stderr or f"{name}: the smoke test refused its options; see {as_typed('smoke', '--help')}")


def installed_in(checkout: Checkout, folder: Path, locked: LockedEnvironment) -> Path:
    """Return the Python of the prefix that an environment was installed in; raises UserError for another lock or loader."""
    found = activation.read_prefix(folder.absolute(), locked)
    if not (found.current and loader.is_current(checkout, found.folder)):
        remedy = f"run {as_typed('install', locked.name, str(folder))}"
        raise UserError(f"{folder}: expected {locked.name} as it is locked now, found an older installation; {remedy}")
    return found.folder / "bin" / "python"


def help_text(checkout: Checkout) -> str:
    """Return the help of the smoke test, with the options that belong to the builder; raises UserError."""
    environ = {**variables(), _PROG: as_typed("smoke", "[NAME]")}
    command = [sys.executable, "-m", "smoke_tests", "--help", "--validate"]
    ended = run(command, deadline=_VALIDATE_DEADLINE, environ=environ, cwd=place_of_smoke_test(checkout))
    if ended.code:
        raise UserError(ended.stderr or "the smoke test printed no help; run it again")
    lines = "\n".join(targets.help_lines())
    build = Path("build") if checkout.build == Path.cwd() / "build" else checkout.build
    return (
        f"{ended.stdout.rstrip()}\n"
        f"  --bundle DIR          Install the environment from this bundle, without an index.\n"
        f"  --prefix DIR          Prove the environment that is installed in this folder.\n"
        f"  --python PATH         With --here, prove the environment of this interpreter (default: python on PATH).\n"
        f"  --image REF           Run the smoke test in this image instead; with --here, in any image.\n"
        f"{lines}\n\n"
        f"NAME is an environment of `{as_typed('list')}` (default: {DEFAULT_ENVIRONMENT}); "
        f"options stand on either side of it.\n"
        f"Reports go to {build / 'smoke'}, environments to {build / 'environments'}.\n\n"
        f"Example: {as_typed('smoke', DEFAULT_ENVIRONMENT, '--zero', '3', '--nproc', '2')}"
    )


def place_of_smoke_test(checkout: Checkout) -> Path:
    """Return the folder that the smoke test runs in: Python finds the package there."""
    return checkout.file("smoke_tests").parent


def absolute_paths(options: Sequence[str], place: Path) -> list[str]:
    """Return `options` with absolute paths where the smoke test runs in another folder, `place`, than the user."""
    if Path.cwd() == place:
        return [*options]
    for name in ("--report", "--checkpoint"):
        options, value = pop_option(options, name, "a folder")
        if value is not None:
            is_path = name == "--report" or Path(value).exists()  # a checkpoint may be an id of a hub
            options = [*options, name, str(Path(value).absolute()) if is_path else value]
    return [*options]


def variables() -> dict[str, str]:
    """Return this process's environment variables without those that add foreign packages or hide the smoke test."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", _PROG, _HINT}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "PYTHONNOUSERSITE": "1"}
