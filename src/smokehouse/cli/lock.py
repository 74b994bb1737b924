"""The verb that makes locks."""

from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import ChannelOption, JsonOption, NamesArgument
from smokehouse.errors import UserError


def lock(
    names: NamesArgument = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Report out-of-date locks; change nothing.")] = False,
    tools: Annotated[bool, typer.Option("--tools", help="Lock Smokehouse's own tools instead.")] = False,
    base: Annotated[bool, typer.Option("--base", help="Lock the Debian packages of the base image instead.")] = False,
    upgrade: Annotated[
        str | None, typer.Option(metavar="PACKAGE", help="Upgrade only PACKAGE and the dependencies that must change.")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Print what a new lock would change; write nothing.")] = False,
    drift: Annotated[
        bool,
        typer.Option("--drift", help="Print what the index would answer today for each lock; exit with 1 where it differs."),
    ] = False,
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Allow a cut-off of the last 14 days, for which an index still adds files.")
    ] = False,
    channel: ChannelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Resolve environments to lock files: one version, file and hash per package."""
    from smokehouse.locks import lock_all

    if check and (diff or drift or upgrade or unsettled):
        raise UserError("--check: expected no option but --tools and --json, as it resolves nothing; drop the others")
    if drift and (diff or upgrade or unsettled):
        raise UserError("--drift: expected no --diff, --upgrade or --unsettled, as it changes nothing; drop them")
    if tools and (names or diff or drift or upgrade or (as_json and not check)):
        raise UserError(
            "--tools: expected no names and no option but --check and --unsettled; lock the environments in a separate run"
        )
    if base and (names or check or tools or upgrade or diff or drift or unsettled or as_json):
        raise UserError("--base: expected no names and no other options; lock the environments in a separate run")
    checkout = Checkout.find(Path.cwd())
    if base:
        from smokehouse.images import debian_lock as bases

        return bases.lock(checkout)
    if check:
        others = () if names or tools else _problems_of_base(checkout)
        return lock_all.check_all(checkout, names or [], only_tools=tools, as_json=as_json, others=others)
    if tools:
        return lock_all.lock_tools(checkout, unsettled=unsettled)
    if drift:
        return lock_all.drift(checkout, names or [], channel=channel, as_json=as_json)
    return lock_all.lock_all(
        checkout, names or [], channel=channel, upgrade=upgrade, dry=diff, unsettled=unsettled, as_json=as_json
    )


def _problems_of_base(checkout: Checkout) -> list[str]:
    """Return what is wrong with the lock of the base image, where the checkout has one of its own."""
    from smokehouse.errors import collecting
    from smokehouse.images import debian_lock

    problems: list[str] = []
    if checkout.file(debian_lock.LOCK).is_relative_to(checkout.root) and (checkout.root / "docker" / "base.toml").is_file():
        with collecting(problems):
            debian_lock.read(checkout)
    return problems
