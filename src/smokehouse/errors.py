"""The one exception that reaches a user."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line is faster without
    from pydantic import ValidationError


class UserError(Exception):
    """Something the user can mend: what is wrong, where (`file:line`) and what to do, as one line."""

    def __init__(self, message: str) -> None:
        """Join `message` to a single line."""
        super().__init__(" ".join(message.split()))


def first_of(invalid: "ValidationError", whole: str = "the file") -> str:
    """Return the first thing that is wrong with data, and where in it; `whole` is what all of it is called."""
    first = invalid.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"
