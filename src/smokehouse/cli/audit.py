"""The verb that lists known vulnerabilities."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import NamesArgument
from smokehouse.console import status
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smokehouse.audits import Database
    from smokehouse.audits.model import Target
    from smokehouse.audits.result import Audit, Found

_HEAD = ("WHERE", "PACKAGE", "VERSION", "VULNERABILITY", "SEVERITY", "FIXED IN", "DECISION")


def audit(
    names: NamesArgument = None,
    *,
    database: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with exports of OSV and Debian's tracker.  [default: ask both services]"),
    ] = None,
    kind: Annotated[Literal["table", "json", "sarif"], typer.Option("--format", help="Format of the result.")] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write.  [default: standard output]")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 for an undecided vulnerability, and for an expired or unmatched decision."),
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="Write the results to docs/audits, which pages show.")] = False,
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="Service of OSV to ask.  [default: https://api.osv.dev]")
    ] = None,
    tracker: Annotated[
        str | None, typer.Option(metavar="URL", help="Records of Debian's tracker to read.  [default: those of Debian]")
    ] = None,
) -> int:
    """List the known vulnerabilities of PyPI packages and of the Debian base, with the decisions about them in vex/."""
    from smokehouse import audits
    from smokehouse.audits import audit as auditing
    from smokehouse.audits import sarif
    from smokehouse.storage import files

    if database and (service or tracker):
        raise UserError("--database: expected no --service and no --tracker, as it asks no service; drop them")
    checkout = Checkout.find(Path.cwd())
    if record:
        checkout.require_own("audit --record")
    targets = audits.targets(checkout, names or [])
    decisions = audits.read_decisions(checkout)
    known = _known(targets, database, service, tracker)
    suite = auditing.suite(checkout)
    found = audits.audit_targets(targets, known, decisions, suite, date.today(), whole=not names)
    if check and (lacking := [target.title for target in found.targets if target.unaudited]):
        raise UserError(f"{found.database}: expected records of all packages, found none for {', '.join(lacking)}; add them")
    text = _table(found)
    if kind != "table":
        text = found.text() if kind == "json" else sarif.text(found, {target.file: target.lines for target in targets})
    if output:
        files.write(output, text)
    else:
        print(text, end="")
    if record:
        for target in found.targets:
            files.write(checkout.audit(target.name), found.of(target).text())
    return _conclude(found, check=check)


def _known(targets: "Sequence[Target]", folder: Path | None, service: str | None, tracker: str | None) -> "Database":
    """Return what the database in a folder, or the services, know of the packages of the targets."""
    from smokehouse import audits
    from smokehouse.audits import service as services

    packages = sorted({package for target in targets for package in target.packages})
    if folder:
        return audits.Database.read(folder, packages)
    return services.ask(packages, service or services.OSV, tracker or services.TRACKER)


def _conclude(found: "Audit", *, check: bool) -> int:
    """Say what was audited and what is to be decided; return the exit code."""
    for problem in found.problems:
        status(problem)
    for target in found.targets:
        if target.unaudited:
            status(f"{target.title}: {target.unaudited} of {target.packages} packages not audited: no records of their kind")
    audited = sum(target.packages - target.unaudited for target in found.targets)
    total = sum(len(target.found) for target in found.targets)
    status(
        f"{found.database} as of {found.asked}: {total} known vulnerabilities in {audited} packages, {found.undecided} without "
        "a decision; there are no records of conda packages"
    )
    return int(check and bool(found.undecided or found.problems))


def _table(found: "Audit") -> str:
    """Return the findings as a table, nothing where there are none."""
    rows = [_HEAD, *(_cells(target.title, one) for target in found.targets for one in target.found)]
    if len(rows) == 1:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _cells(where: str, one: "Found") -> tuple[str, ...]:
    """Return the cells of a finding; characters that a terminal would obey are replaced."""
    decision = f"{one.decided.status} until {one.decided.expires}: {one.decided.reason}" if one.decided else one.note
    cells = (where, one.package, one.version, one.id, one.severity, one.fixed or "-", decision)
    return tuple("".join(character if character.isprintable() else "?" for character in cell) for cell in cells)
