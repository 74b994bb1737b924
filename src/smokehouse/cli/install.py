"""The verbs that bring an environment to a machine."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import BundleOption, ChannelOption, DevelOption, NameArgument, PrefixOption, WithOption
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from smokehouse.locks import LockedEnvironment

# What follows the name belongs to the command.
RUN_SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def bundle(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle to create or continue.")],
    channel: ChannelOption = None,
    only: Annotated[Literal["pip"] | None, typer.Option(help="Leave out the conda packages.")] = None,
    devel: DevelOption = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="BUNDLE", help="Take what this other bundle has instead of fetching it; repeatable."),
    ] = None,
) -> int:
    """Fetch everything that is needed to install an environment without a network; continues an interrupted call."""
    from smokehouse import locks
    from smokehouse.installs import bundler
    from smokehouse.installs.bundle import LOCK

    locked = locks.load(Checkout.find(Path.cwd()), name)
    for other in reuse or ():
        if not (other / LOCK).is_dir():
            raise UserError(f"--from {other}: expected a bundle, found none; specify the folder of another bundle")
    bundler.make(locked, folder, channel=channel, only_pip=only == "pip", devel=devel, reuse=reuse or ())
    return 0


def install(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="PREFIX", help="Folder to install into.")],
    *,
    bundle: BundleOption = None,
    channel: ChannelOption = None,
    devel: DevelOption = False,
    used_as: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Final path, if PREFIX will be relocated.  [default: PREFIX]")
    ] = None,
    only: Annotated[
        Literal["pip"] | None, typer.Option(help="Install the PyPI packages alone, in a virtual environment.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter for --only pip, of the lock's version.  [default: uv's]")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--with-project",
            metavar="DIR[EXTRA,...]",
            help="Add a repository of your own, editable, with its dependencies; refused if the lock does not meet them.",
        ),
    ] = None,
    extras: Annotated[
        list[str] | None, typer.Option("--extra", metavar="EXTRA", help="Extra of --with-project; repeatable.")
    ] = None,
    added: WithOption = None,
    ops: Annotated[
        Literal["aot", "none"],
        typer.Option(help="Compile DeepSpeed's Adam ops now, with --devel or a CUDA toolkit of this machine."),
    ] = "none",
    check: Annotated[
        bool, typer.Option("--check", help="Compare all files with their packages; change nothing; exit with 1 if one differs.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compare all files with their packages, and install all again if one differs.")
    ] = False,
) -> int:
    """Install an environment without root and without a container engine; repairs and updates what is there."""
    from smokehouse import locks
    from smokehouse.installs import Additions, activation, extra_wheels, prefix, virtualenv
    from smokehouse.installs import bundle as bundles
    from smokehouse.installs import ops as op_builds
    from smokehouse.installs import project as projects
    from smokehouse.installs.target import resolved

    _require_fitting(only=only, python=python, devel=devel, used_as=used_as, project=project, extras=extras)
    checkout = Checkout.find(Path.cwd())
    locked = locks.load(checkout, name)
    folder = resolved(folder)
    if check:
        if bundle or devel or used_as or only or python or project or added or ops == "aot" or repair:
            raise UserError("--check: expected no other options, as it installs nothing; drop them")
        return _check(folder, locked)
    if project and bundle:
        raise UserError("--with-project: expected an index, found --bundle, which has nothing for a project; drop one of them")
    toolkit = op_builds.require_toolkit(locked, os.environ, devel=devel) if ops == "aot" else None
    bundled = bundles.read(bundle, locked) if bundle else None
    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    request = projects.parse(project, extras or ()) if project else None
    additions = Additions(
        extra_wheels.fetch_wheels(checkout, wheels, locked.environment, locked.lock),
        projects.plan(request, locked, activation.recorded_project(folder)) if request else None,
    )
    if only:
        placed = virtualenv.install(
            checkout, locked, folder, bundled=bundled, python=python, additions=additions, toolkit=toolkit, repair=repair
        )
    else:
        placed = prefix.install(
            *(checkout, locked, folder),
            bundled=bundled,
            channel=channel,
            devel=devel,
            used_as=used_as,
            additions=additions,
            toolkit=toolkit,
            repair=repair,
        )
    print(placed)
    if added_project := additions.project:
        status(f"added {added_project.name} {added_project.version} and {len(added_project.added)} packages for it")
    status(activation.hint(used_as.absolute() if used_as else folder, name, prefix=True))
    return 0


def _check(folder: Path, locked: "LockedEnvironment") -> int:
    """Print how an installation differs from its lock and from what was added; return 1 where it does, else 0."""
    from smokehouse.installs import activation

    found = activation.read_prefix(folder, locked)
    problems = activation.differences(found, locked, strict=True)
    for problem in problems:
        print(problem)
    if problems:
        contents = not {*problems} <= {*activation.differences(found, locked, strict=False)}
        remedy = activation.remedy(found, locked, contents=contents)
        status(f"{folder}: {len(problems)} differences; to repair it, run {remedy}")
    else:
        status(f"{folder}: as installed, every file")
    return int(bool(problems))


def _require_fitting(
    *, only: str | None, python: str | None, project: str | None, extras: list[str] | None, **conda: object
) -> None:
    """Raise UserError where options need one that is missing, or exclude one that is there."""
    if python and not only:
        raise UserError("--python: expected --only pip, as PREFIX has its own Python otherwise; add it, or drop --python")
    if extras and not project:
        raise UserError("--extra: expected --with-project, whose extras it names; add it, or drop --extra")
    if only and (unfit := [f"--{option.replace('_', '-')}" for option, value in conda.items() if value]):
        raise UserError(f"--only pip: expected no {unfit[0]}, which is about conda packages; drop one of them")


def run(
    name: NameArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Program to run, and its arguments.")],
    folder: PrefixOption = None,
) -> None:
    """Run a command in an installed environment: its programs come first, and packages of other Pythons are left out."""
    from smokehouse import locks
    from smokehouse.installs import activation, loader

    checkout = Checkout.find(Path.cwd())
    locked = locks.load(checkout, name)
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise UserError(f"run: expected a command, found none; run {as_typed('run', name, '-- python')}, for example")
    found = activation.read_prefix(folder.absolute(), locked) if folder else activation.find(checkout, locked)
    if not found:
        prefix, again = (
            as_typed("install", name, "PREFIX"),
            as_typed("run", "--prefix", "PREFIX", name, "--", shlex.join(command)),
        )
        raise UserError(f"{name}: not installed; run {as_typed('smoke', name)}, or {prefix} and {again}")
    if not (found.current and loader.is_current(checkout, found.folder)):
        older = "smokehouse-loader" if found.current else "lock"
        again = as_typed("install", name, shlex.quote(str(folder))) if folder else as_typed("smoke", name)
        status(f"{found.folder}: installed from an older {older}; run {again} to bring it up to date")
    activation.execute(found.folder, command)
