"""The table of known failures, from which explanations, their documentation, tests and controls are generated.

Families are modules of their own; `printed` says which programs print each text, in which versions.
"""

from smokehouse_loader.failures import adapters, classes, collectives, data, files, hubs, keys, machine, rollouts, saving, zero
from smokehouse_loader.failures.model import Failure, Sign
from smokehouse_loader.failures.printed import PRINTED

__all__ = ["BY_NAME", "FAILURES", "FAMILIES", "PRINTED", "Failure", "Sign", "fix_for"]

# In the order in which explanations of one text are given: the failures that say most about a cause come first.
FAMILIES = {
    "Loading and keys": keys.FAILURES,
    "Adapters": adapters.FAILURES,
    "Classes and configurations": classes.FAILURES,
    "Files": files.FAILURES,
    "Saving and resuming": saving.FAILURES,
    "ZeRO at run time": zero.FAILURES,
    "Rollouts": rollouts.FAILURES,
    "Data and numbers": data.FAILURES,
    "The machine": machine.FAILURES,
    "Hubs and proxies": hubs.FAILURES,
    "Collectives": collectives.FAILURES,
}
FAILURES: tuple[Failure, ...] = tuple(failure for family in FAMILIES.values() for failure in family)
BY_NAME = {failure.name: failure for failure in FAILURES}


def fix_for(name: str) -> str:
    """Return how to fix the failure `name`. Raises KeyError if the table does not have it."""
    return BY_NAME[name].cure
