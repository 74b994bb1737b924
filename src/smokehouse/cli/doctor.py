"""The verb that checks a machine."""

import json
from dataclasses import asdict
from pathlib import Path

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import JsonOption, MarkdownOption, NameArgument, PrefixOption
from smokehouse.errors import UserError


def doctor(
    name: NameArgument = DEFAULT_ENVIRONMENT,
    *,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> int:
    """Check this machine and what is installed: driver, memory, limits, disk, Python, packages; exit with 1 for a failure."""
    from smokehouse import locks
    from smokehouse.installs import machine

    if as_json and markdown:
        raise UserError("doctor: expected --json or --markdown, found both; give one")
    checkout = Checkout.find(Path.cwd())
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
