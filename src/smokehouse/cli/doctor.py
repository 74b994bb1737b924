"""The verb that checks a machine."""

import json
from dataclasses import asdict
from pathlib import Path

from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
from smokehouse.cli.options import JsonOption, NameArgument


def doctor(
    name: NameArgument = DEFAULT_ENVIRONMENT,
    as_json: JsonOption = False,
) -> int:
    """Check this machine: driver, shared memory, limits, disk, Python, compilers; exit with 1 where training cannot work."""
    from smokehouse import locks
    from smokehouse.installs import machine

    checkout = Checkout.find(Path.cwd())
    locked = locks.load(checkout, name)
    found = machine.findings(checkout, locked)
    if as_json:
        print(json.dumps({"environment": locked.name, "findings": [asdict(finding) for finding in found]}, indent=1))
    else:
        for finding in found:
            print(f"  {'FAIL' if finding.level == 'fail' else finding.level:<5} {finding}")
    return int(any(finding.level == "fail" for finding in found))
