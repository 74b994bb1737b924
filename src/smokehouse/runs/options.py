"""Take the builder's own options out of those of a smoke test."""

from collections.abc import Sequence

from smokehouse.errors import UserError


def pop_option(options: Sequence[str], name: str, value: str) -> tuple[list[str], str | None]:
    """Return `options` without the option `name`, and its value, None where it is not among them.

    `value` describes what the option requires. Raises UserError where it has no value.
    """
    rest: list[str] = []
    found = None
    remaining = iter(options)
    for option in remaining:
        if option.split("=")[0] != name:
            rest.append(option)
        elif not (found := option.removeprefix(name).removeprefix("=") or next(remaining, "")):
            raise UserError(f"{name} requires {value}")
    return rest, found
