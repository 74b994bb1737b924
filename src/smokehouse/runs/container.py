"""Run the smoke test of an image in a container: for whoever watches, or to its end for its report.

The container is as restricted as on any cluster: a read-only root, a user without a name, no network.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smokehouse.checkout import ENVIRONMENT_LABEL, Checkout, is_environment_name
from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.programs import docker
from smokehouse.programs.docker import Container, EngineImage, Mount
from smokehouse.runs import local, report
from smokehouse.runs.options import pop_option, report_name
from smokehouse.runs.report import Report

_NOBODY = 54321  # a user and a group that no image has a name for
_DEADLINE = 7200.0  # seconds
# What an NVIDIA driver has: the module of Linux, or what WSL2 brings from Windows.
_DRIVER = ("/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1")

# Where the smoke test is in a container of somebody else's image, which has neither it nor a home for the user.
_PLACE = "/opt/smokehouse-here"
_LOADER = Path(__file__).resolve().parents[2] / "smokehouse_loader"  # beside smokehouse, in a checkout and installed
_HOME = {"HOME": "/tmp", "USER": "smokehouse", "LOGNAME": "smokehouse", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}


def smoke_image(checkout: Checkout, reference: str, options: Sequence[str]) -> int:
    """Run the smoke test of the image `reference` with `options` in a container, and return its exit code.

    The report is written to build/smoke of the checkout, or the folder that `--report` specifies. Raises UserError.
    """
    return docker.run(_prepare(checkout, reference, options)[0])


def smoke_image_here(checkout: Checkout, reference: str, family: str | None, options: Sequence[str]) -> int:
    """Run the smoke test of what is installed in the image `reference`, whoever built it, and return its exit code.

    Nothing in the image is needed but a Python with torch: `--python PATH` or `--prefix DIR` among the options say where in
    the image, by default python3 on its PATH. Raises UserError.
    """
    options, python = pop_option(options, "--python", "the path of an interpreter in the image")
    options, prefix = pop_option(options, "--prefix", "a folder of the image with bin/python")
    if python and prefix:
        raise UserError(f"smoke: expected --python or --prefix, found both; give one of {python} and {prefix}")
    image = docker.inspect(reference)
    smoke_tests = checkout.file("smoke_tests")
    packages = {"smoke_tests": smoke_tests, _LOADER.name: _LOADER}
    options, value = pop_option(options, "--report", "a folder")
    folder = Path(value or checkout.build / "smoke" / report_name("here-image", options)).absolute()
    command = ["-m", "smoke_tests", "--here" if family is None else f"--here={family}", "--report", "/report"]
    command += ["--image", image.digest, *options]
    local.validate(command, "here", smoke_tests.parent)
    container = _container(image, command, folder, options)
    mounts = (*container.mounts, *(Mount(path, f"{_PLACE}/{name}") for name, path in packages.items()))
    entrypoint = f"{prefix}/bin/python" if prefix else python or "python3"
    return docker.run(replace(container, mounts=mounts, entrypoint=entrypoint, workdir=_PLACE, environ=_HOME))


def prove(checkout: Checkout, reference: str, folder: Path) -> Report:
    """Run the smoke test of the image `reference` and return its report, which is written to `folder`.

    Raises UserError where the engine has no such image, or the smoke test fails.
    """
    container, environment, written = _prepare(checkout, reference, ["--report", str(folder)])
    ended = docker.run_to_end(container, deadline=_DEADLINE)
    if ended.code:
        said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{reference}: smoke test failed ({' '.join(said)}); see {written}")
    remedy = f"run {as_typed('smoke', '--image', reference)} again"
    return report.read(checkout, written / "report.json", environment, remedy)


def _prepare(checkout: Checkout, reference: str, options: Sequence[str]) -> tuple[Container, str, Path]:
    """Return the container of the smoke test of the image `reference`, its environment and the folder of its report."""
    image = docker.inspect(reference)
    name = image.labels.get(ENVIRONMENT_LABEL, "")
    if not is_environment_name(name):
        build = as_typed("build", "NAME")
        raise UserError(f"{reference}: not an image of Smokehouse, by its labels; build one: {build}")
    options, value = pop_option(options, "--report", "a folder")
    folder = Path(value or checkout.build / "smoke" / report_name(f"{name}-image", options)).absolute()
    command = ("smoke", "--report", "/report", "--image", image.digest, *options)
    return _container(image, command, folder, options), name, folder


def _container(image: EngineImage, command: Sequence[str], folder: Path, options: Sequence[str]) -> Container:
    """Return the container of a smoke test with `options` whose report goes to `folder`; makes that folder."""
    user, group = os.getuid() or _NOBODY, os.getgid() or _NOBODY
    _make_report_folder(folder, user, group)
    mounts = [Mount(folder, "/report", read_only=False), *(Mount(path, str(path)) for path in _checkpoint_folders(options))]
    gpus = any(Path(place).exists() for place in _DRIVER)
    return Container(image, tuple(command), f"{user}:{group}", tuple(mounts), gpus)


def _make_report_folder(folder: Path, user: int, group: int) -> None:
    """Make the folder of the report, which the container's user owns where root starts it; raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    # The smoke test checks this as well, but by then the container's user owns what is in the folder.
    if not (folder / ".lock").exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: expected an empty folder or one of reports, found other files; give --report a new one")
    if os.getuid() == 0:
        os.chown(folder, user, group)
        for path in folder.rglob("*"):
            os.chown(path, user, group, follow_symlinks=False)


def _checkpoint_folders(options: Sequence[str]) -> list[Path]:
    """Return the checkpoint folder in `options`, which the container has to find at the same path."""
    _, value = pop_option(options, "--checkpoint", "a folder or an id")
    return [Path(value).absolute()] if value and Path(value).is_dir() else []
