"""The verbs that bring an environment to a machine."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import BundleOption, ChannelOption, DevelOption, NameArgument
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError

# What follows the name belongs to the command.
RUN_SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def bundle(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle to create or continue.")],
    channel: ChannelOption = None,
    only: Annotated[Literal["pip"] | None, typer.Option(help="Leave out the conda packages.")] = None,
    devel: DevelOption = False,
) -> int:
    """Fetch everything that is needed to install an environment without a network; continues an interrupted call."""
    from smokehouse import locks
    from smokehouse.installs import bundler

    locked = locks.load(Checkout.find(Path.cwd()), name)
    bundler.make(locked, folder, channel=channel, only_pip=only == "pip", devel=devel)
    return 0


def install(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="PREFIX", help="Folder to install into.")],
    bundle: BundleOption = None,
    channel: ChannelOption = None,
    devel: DevelOption = False,
    used_as: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Final path, if PREFIX will be relocated.  [default: PREFIX]")
    ] = None,
) -> int:
    """Install an environment without root and without a container engine; continues an interrupted call."""
    from smokehouse import locks
    from smokehouse.installs import activation, prefix
    from smokehouse.installs import bundle as bundles

    checkout = Checkout.find(Path.cwd())
    locked = locks.load(checkout, name)
    bundled = bundles.read(bundle, locked) if bundle else None
    print(prefix.install(checkout, locked, folder, bundled=bundled, channel=channel, devel=devel, used_as=used_as))
    status(activation.hint((used_as or folder).absolute(), name, prefix=True))
    return 0


def run(
    name: NameArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Program to run, and its arguments.")],
    folder: Annotated[
        Path | None,
        typer.Option("--prefix", metavar="PREFIX", help="Folder that `install` used.  [default: that of `smoke`]"),
    ] = None,
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
