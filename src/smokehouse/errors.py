"""The one exception whose message a user reads."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing pydantic takes longer than most commands run
    from pydantic import ValidationError


class UserError(Exception):
    """A mistake that the user can fix, as one line: where (`file:line`), what was expected and found, what to do."""

    def __init__(self, message: str) -> None:
        """Join the lines of `message`, and replace control characters in it, which a terminal would obey."""
        joined = " ".join(message.split())
        super().__init__("".join(character if character.isprintable() else "?" for character in joined))


def first_of(invalid: "ValidationError", whole: str = "the file") -> str:
    """Return the first problem of invalid data and its place, called `whole` if that is all of the data."""
    first = invalid.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"
