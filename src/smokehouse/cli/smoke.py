"""The verbs that prove an environment and show what was proven."""

import json
from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import JsonOption, complete_environment
from smokehouse.errors import UserError

# The smoke test owns its options, --help among them.
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def smoke(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [OPTIONS]...", autocompletion=complete_environment)
    ] = None,
) -> int:
    """Install an environment and prove it on this machine, or --on a cluster; --help lists the options."""
    from smokehouse import runs

    name, options = runs.split_name(arguments or [])
    checkout = Checkout.find(Path.cwd())
    if {"-h", "--help"} & {*options}:
        print(runs.help_text(checkout))
        return 0
    options, engine = runs.pop_option(options, "--on", "an engine")
    if engine:
        return runs.smoke_on(checkout, engine, DEFAULT_ENVIRONMENT if name is None else name, options)
    options, image = runs.pop_option(options, "--image", "an image that the engine has")
    here = next((option for option in options if option.split("=")[0] == "--here"), None)
    if here:
        family = here.partition("=")[2] or name
        options = [option for option in options if option != here]
        if image:
            return runs.smoke_image_here(checkout, image, family, options)
        runs.smoke_here(checkout, family, options)
    if any(option.split("=")[0] == "--python" for option in options):
        raise UserError("--python: expected --here with it, which proves what is installed without a lock; add --here")
    if image:
        return runs.smoke_image(checkout, image, options)
    runs.smoke(checkout, DEFAULT_ENVIRONMENT if name is None else name, options)
    return 0  # not reached: the smoke test replaces this process


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="report.json of a smoke test, or the folder that has it.")],
    as_json: JsonOption = False,
) -> int:
    """Print the table of a smoke test's report again; report.html beside it shows all of it."""
    from smokehouse import runs

    found = runs.read_any(Checkout.find(Path.cwd()), file)
    print(json.dumps(found.fields, indent=1) if as_json else found.table.rstrip())
    return 0
