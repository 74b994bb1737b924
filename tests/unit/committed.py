"""The committed environments, without those that would only be measured again."""

from pathlib import Path

from smokehouse import environments
from smokehouse.checkout import Checkout


def by_inputs() -> list[str]:
    """Return one environment for each set of packages that is requested, as environments of a stack may have the same one.

    That they then have the same files is what `test_environments_of_one_stack_differ_in_what_they_add` is about.
    """
    checkout = Checkout(Path(__file__).parents[2])
    found: dict[str, str] = {}
    for name in sorted(checkout.environments(), reverse=True):
        found[environments.read(checkout, name).digest()] = name
    return sorted(found.values())
