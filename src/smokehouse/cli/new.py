"""The verb that begins an environment."""

from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import complete_environment
from smokehouse.console import as_typed


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new environment.")],
    *,
    like: Annotated[
        str,
        typer.Option(metavar="OTHER", help="Environment to copy packages and lock from.", autocompletion=complete_environment),
    ],
    family: Annotated[
        str | None,
        typer.Option(metavar="FAMILY", help="Model family, as model_type in config.json.  [default: that of OTHER]"),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Class in transformers, for a family that does not exist yet."),
    ] = None,
) -> int:
    """Write a new environment like another: definition, lock, and a model family where it does not exist yet."""
    from smokehouse.locks import skeleton

    checkout = Checkout.find(Path.cwd())
    for path in skeleton.create(checkout, name, like, family, class_):
        print(f"{checkout.relative(path)}: written")
    print(f"Edit them, then run {as_typed('lock', name)} and {as_typed('smoke', name)}")
    return 0
