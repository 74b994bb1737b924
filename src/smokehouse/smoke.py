"""Starting the smoke test of an environment inside that environment."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environment
from smokehouse.errors import UserError
from smokehouse.installs import bundle
from smokehouse.installs import prefix as halves
from smokehouse.installs import virtualenv as installation
from smokehouse.locks import check
from smokehouse.locks import pins as lock
from smokehouse.programs import docker as engine
from smokehouse.programs.process import run

DEFAULT = "qwen2.5-vl"
_VALIDATING = 60.0  # seconds
_NOBODY = 54321  # a user and a group that no image has a name for


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> None:
    """Become the smoke test of the environment `name`, run with `options`; installs the environment first.

    `--bundle DIR` among the options is ours: everything is then installed from that bundle, and no index is known.

    The smoke test owns its options and is asked about them before anything is downloaded; where they only ask for help,
    prints it and returns. Raises UserError.
    """
    options, folder = without(options, "--bundle", "a folder, made by nox -s bundle -- NAME DIR")
    promise = environment.read(checkout, name)
    place = lock.environment_lock(checkout, name)
    check.check_environment(promise, place)
    bundled = bundle.read(Path(folder), name, place.pins.parent) if folder else None
    command = ["-m", "smoke_tests", "--environment", name]
    command += ["--stack", str(checkout.environment(name) / "stack.toml"), "--lock", str(place.pins.parent)]
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
    if bundled and "conda" in bundled.contents.halves:
        python = halves.install(checkout, name, checkout.bundled(name), bundled=bundled)
    else:
        python = installation.ensure(checkout, promise, bundled)
    sys.stdout.flush()
    os.chdir(checkout.root)
    # An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the smoke test itself.
    os.execve(python, [str(python), *command], environ)


def smoke_image(checkout: Checkout, reference: str, options: Sequence[str]) -> NoReturn:
    """Become the smoke test of the image `reference`, run with `options` in a container as hard on it as any cluster.

    The root is read-only, the user has no name and there is no network; the report, in build/smoke of the checkout unless
    `--report` says where, names the image's digest. Raises UserError.
    """
    image = engine.inspect(reference, checkout.root)
    name = image.labels.get("io.smokehouse.environment", "")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UserError(f"{reference}: no image of Smokehouse, by its labels; build one: nox -s build -- NAME")
    options, given = without(options, "--report", "a folder")
    report = Path(given or checkout.root / "build" / "smoke" / f"{name}-image").absolute()
    report.mkdir(parents=True, exist_ok=True)
    # The smoke test asks so, too, but from now on all in it is that of the user in the container.
    if not (report / ".lock").exists() and any(report.iterdir()):
        raise UserError(f"{report}: not empty, and no folder of reports; give --report a new one")
    user, group = os.getuid() or _NOBODY, os.getgid() or _NOBODY
    if os.getuid() == 0:
        os.chown(report, user, group)
        for path in report.rglob("*"):
            os.chown(path, user, group, follow_symlinks=False)
    container = ["--user", f"{user}:{group}", "--read-only", "--network", "none", "--shm-size", "2g", "--init=false"]
    container += ["--tmpfs", "/tmp:rw,exec,mode=1777", "--mount", f"type=bind,source={report},target=/report"]
    for checkpoint in _folders(options):
        container += ["--mount", f"type=bind,source={checkpoint},target={checkpoint},readonly"]
    if Path("/proc/driver/nvidia/version").exists():
        container += ["--gpus", "all"]
    engine.become_container(
        image, ["smoke", "--report", "/report", "--image", image.digest, *options], container, checkout.root
    )


def _folders(options: Sequence[str]) -> list[Path]:
    """Return the checkpoint that lies in a folder here, which the container has to see at the same place."""
    _, given = without(options, "--checkpoint", "a folder or an id")
    return [Path(given).absolute()] if given and Path(given).is_dir() else []


def without(options: Sequence[str], name: str, what: str) -> tuple[list[str], str | None]:
    """Return `options` without the option `name`, which wants `what`, and what it was given; raises UserError."""
    rest: list[str] = []
    found = None
    left = iter(options)
    for option in left:
        if option.split("=")[0] != name:
            rest.append(option)
        elif not (found := option.removeprefix(name).removeprefix("=") or next(left, "")):
            raise UserError(f"{name} wants {what}")
    return rest, found


def _environ() -> dict[str, str]:
    """Return the environment without what would let packages from outside in, or keep `-m` from finding the tests."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "PYTHONNOUSERSITE": "1"}
