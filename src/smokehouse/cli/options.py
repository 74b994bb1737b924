"""Options and arguments that several verbs have."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError


def complete_environment(incomplete: str) -> list[str]:
    """Return the names of environments that begin with what was typed, for the completion of a shell."""
    try:
        return [name for name in Checkout.find(Path.cwd()).environments() if name.startswith(incomplete)]
    except (UserError, OSError):
        return []


def split_text(options: str) -> list[str]:
    """Return the options in one text, as a shell splits it; raises UserError."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UserError(f"--options {options}: expected options as a shell reads them, found {error}; quote them") from error


ChannelOption = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_URL", envvar="SMOKEHOUSE_CHANNEL", help="Copy or mirror of conda-forge to use."),
]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="REF@sha256:…", help="Base image, with a shell, tar and glibc.  [default: Debian]"),
]
WithOption = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="WHEEL#sha256=HEX",
        help="Add a wheel that is not in the lock, by https URL or file, such as a flash-attn release; repeatable.",
    ),
]
DevelOption = Annotated[bool, typer.Option("--devel", help="Include the compilers and the CUDA toolkit.")]
OpsOption = Annotated[
    Literal["aot", "none"] | None,
    typer.Option(
        "--ops", help="Compile DeepSpeed's ops ahead of time or at first use.  [default: aot where the lock has a toolkit]"
    ),
]
FlavourOption = Annotated[Literal["runtime", "devel"], typer.Option(help="devel adds compilers and the CUDA toolkit.")]
BundleOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Install from this bundle alone.")]
PrefixOption = Annotated[
    Path | None, typer.Option("--prefix", metavar="PREFIX", help="Folder that `install` used.  [default: that of `smoke`]")
]
SourceOption = Annotated[str | None, typer.Option(metavar="URL", help="URL of the checkout, for the labels.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print Markdown, to paste into an issue.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Environment.", autocompletion=complete_environment)]
NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Environments.  [default: all]", autocompletion=complete_environment),
]
