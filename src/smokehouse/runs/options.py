"""Options of a smoke test that belong to the builder."""

from collections.abc import Sequence

from smokehouse.errors import UserError


def pop_option(options: Sequence[str], name: str, what: str) -> tuple[list[str], str | None]:
    """Return `options` without the option `name`, which wants `what`, and what it was given; raises UserError."""
    rest: list[str] = []
    found = None
    left = iter(options)
    for option in left:
        if option.split("=")[0] != name:
            rest.append(option)
        elif not (found := option.removeprefix(name).removeprefix("=") or next(left, "")):
            raise UserError(f"{name} wants {what}")
    return rest, found
