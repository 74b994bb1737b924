"""Run the smoke test in an image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from smokehouse.checkout import Checkout, is_environment_name
from smokehouse.errors import UserError
from smokehouse.programs import docker as engine
from smokehouse.runs.options import pop_option

_NOBODY = 54321  # a user and a group that no image has a name for


def smoke_image(checkout: Checkout, reference: str, options: Sequence[str]) -> NoReturn:
    """Become the smoke test of the image `reference`, run with `options` in a container as hard on it as any cluster.

    The root is read-only, the user has no name and there is no network; the report, in build/smoke of the checkout unless
    `--report` says where, names the image's digest. Raises UserError.
    """
    image = engine.inspect(reference, checkout.root)
    name = image.labels.get("io.smokehouse.environment", "")
    if not is_environment_name(name):
        raise UserError(f"{reference}: no image of Smokehouse, by its labels; build one: nox -s build -- NAME")
    options, given = pop_option(options, "--report", "a folder")
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
    engine.exec_container(image, ["smoke", "--report", "/report", "--image", image.digest, *options], container, checkout.root)


def _folders(options: Sequence[str]) -> list[Path]:
    """Return the checkpoint that lies in a folder here, which the container has to see at the same place."""
    _, given = pop_option(options, "--checkpoint", "a folder or an id")
    return [Path(given).absolute()] if given and Path(given).is_dir() else []
