"""The command line."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from smokehouse.errors import UserError
from smokehouse.house import House

app = typer.Typer(
    help="Locked, built and proven environments for training vision-language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("lock")
def _lock(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Environments; all when none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say which locks are not what is asked for.")] = False,
    tools: Annotated[bool, typer.Option("--tools", help="Lock the builder's own tools instead.")] = False,
    upgrade: Annotated[str | None, typer.Option(metavar="PACKAGE", help="Move this one, and what it must drag along.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only print what a new lock would change.")] = False,
    channel: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_URL", envvar="SMOKEHOUSE_CHANNEL", help="A copy or mirror of conda-forge to read."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Resolve environments to the files that an installer takes."""
    from smokehouse import locking

    if check and (diff or upgrade):
        raise UserError("--check resolves nothing, so it takes no --diff and no --upgrade; drop one")
    if tools and (names or diff or upgrade or (as_json and not check)):
        raise UserError("--tools takes no names, and of the options --check; lock the environments in a run of their own")
    house = House.find(Path.cwd())
    if check:
        return locking.check(house, names or [], only_tools=tools, as_json=as_json)
    if tools:
        return locking.make_tools(house)
    return locking.make(house, names or [], channel=channel, upgrade=upgrade, dry=diff, as_json=as_json)


@app.command(
    "smoke",
    # The smoke test owns its options, --help among them.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
def _smoke(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[NAME] [OPTIONS]...")] = None,
) -> None:
    """Install an environment and prove it; the options are those of smoke_tests."""
    from smokehouse.smoke import DEFAULT, smoke

    given = arguments or []
    named = bool(given) and not given[0].startswith("-")
    smoke(House.find(Path.cwd()), given[0] if named else DEFAULT, given[1:] if named else given)


def main() -> int:
    """Run the command line and return its exit code: 0, 1 for a failed check, 2 for a mistake of the user's."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        return int(app(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing half-made is in use", 130)
    except typer.Abort:
        return _complain("interrupted", 130)
    except typer.TyperException as wrong:
        return _complain(f"{wrong.format_message().rstrip('.')}; see --help", 2)
    except UserError as mistake:
        return _complain(str(mistake), 2)
    except OSError as broken:
        where = f"{broken.filename}: " if broken.filename else ""
        return _complain(f"{where}{broken.strerror or broken}; make room or mend the permissions", 2)


def _complain(message: str, code: int) -> int:
    print(f"smokehouse: {message}", file=sys.stderr)
    return code
