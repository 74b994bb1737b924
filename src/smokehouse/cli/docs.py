"""The verb that writes pages."""

from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import NamesArgument
from smokehouse.errors import UserError


def docs(
    names: NamesArgument = None,
    check: Annotated[bool, typer.Option("--check", help="Report out-of-date pages; change nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Adopt this report.json as the evidence of NAME.", metavar="FILE")
    ] = None,
) -> int:
    """Write the page of each environment from its files, and those of compatibility matrices."""
    from smokehouse.pages import update as docs

    if check and report:
        raise UserError("--check: expected no --report, as it changes nothing; drop one")
    checkout = Checkout.find(Path.cwd())
    if report and names and len(names) == 1:
        docs.require_proof(checkout, names[0], report)
    return docs.check(checkout, names or []) if check else docs.make(checkout, names or [], report)
