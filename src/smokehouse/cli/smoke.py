"""The verb that proves an environment."""

from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import complete_environment
from smokehouse.errors import UserError

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
    here = next((option for option in options if option.split("=")[0] == "--here"), None)
    if here:
        family = here.partition("=")[2] or name
        options = [option for option in options if option != here]
        if image:
            runs.smoke_image_here(checkout, image, family, options)
        runs.smoke_here(checkout, family, options)
    if any(option.split("=")[0] == "--python" for option in options):
        raise UserError("--python: expected --here with it, which proves what is installed without a lock; add --here")
    if image:
        runs.smoke_image(checkout, image, options)
    runs.smoke(checkout, DEFAULT_ENVIRONMENT if name is None else name, options)
