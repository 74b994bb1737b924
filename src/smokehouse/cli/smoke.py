"""The verb that proves an environment."""

from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import complete_environment

# The smoke test owns its options, --help among them.
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def smoke(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [OPTIONS]...", autocompletion=complete_environment)
    ] = None,
) -> None:
    """Install an environment and prove it on this machine; --help lists the options."""
    from smokehouse import runs

    name, options = runs.split_name(arguments or [])
    checkout = Checkout.find(Path.cwd())
    if {"-h", "--help"} & {*options}:
        print(runs.help_text(checkout))
        return
    options, image = runs.pop_option(options, "--image", "an image that the engine has")
    if image:
        runs.smoke_image(checkout, image, options)
    runs.smoke(checkout, DEFAULT_ENVIRONMENT if name is None else name, options)
