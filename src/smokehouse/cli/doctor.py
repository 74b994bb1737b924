"""The verb that checks a machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import JsonOption, MarkdownOption, NameArgument, PrefixOption, split_text
from smokehouse.errors import UserError

_ON = "Check the machines of a job of this engine in place of this one: kubernetes or slurm."
_OPTIONS = "Options of the engine, as `smoke --on` has them, and --measure, in one text."


def doctor(
    name: NameArgument = DEFAULT_ENVIRONMENT,
    *,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
    on: Annotated[str, typer.Option(metavar="ENGINE", help=_ON)] = "",
    options: Annotated[str, typer.Option("--options", metavar="TEXT", help=_OPTIONS)] = "",
) -> int:
    """Check this machine and what is installed: driver, memory, limits, disk, Python, packages; exit with 1 for a failure."""
    from smokehouse import locks
    from smokehouse.installs import machine

    if (on or options) and prefix:
        raise UserError("doctor: expected --prefix or --on, found both; a job of an engine runs an image")
    if as_json and markdown:
        raise UserError("doctor: expected --json or --markdown, found both; give one")
    checkout = Checkout.find(Path.cwd())
    if on or options:
        return _on(checkout, on, name, options, as_json=as_json, markdown=markdown)
    locked = locks.load(checkout, name)
    found = machine.findings(checkout, locked, prefix.absolute() if prefix else None)
    if as_json:
        print(json.dumps({"environment": locked.name, "findings": [asdict(finding) for finding in found]}, indent=1))
    elif markdown:
        print(machine.markdown(checkout, f"doctor {locked.name}", found))
    else:
        for finding in found:
            print(f"  {'FAIL' if finding.level == 'fail' else finding.level:<5} {finding}")
    return int(any(finding.level == "fail" for finding in found))


def _on(checkout: Checkout, engine: str, name: str, options: str, *, as_json: bool, markdown: bool) -> int:
    """Check the machines of a job, and print what is found on each; return the exit code. Raises UserError."""
    from smokehouse import runs
    from smokehouse.installs import machine

    found = runs.doctor_on(checkout, engine, name, split_text(options))
    if found is None:
        return 0
    if as_json:
        listed = {place: [asdict(finding) for finding in findings] for place, findings in found.items()}
        print(json.dumps({"environment": name, "machines": listed}, indent=1))
    for place, findings in found.items() if not as_json else ():
        if markdown:
            print(machine.markdown(checkout, f"doctor {name} on {place}", findings), end="\n\n")
            continue
        print(f"{place}:")
        for finding in findings:
            print(f"  {'FAIL' if finding.level == 'fail' else finding.level:<5} {finding}")
    return int(any(finding.level == "fail" for findings in found.values() for finding in findings))
