"""The one exception whose message a user reads, and its form for several mistakes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing pydantic takes longer than most commands run
    from pydantic import ValidationError


_MOST = 20  # lines; more do not help, and a hostile file could have thousands
_LONGEST, _LAST = 4000, 500  # characters of a line, and of its end, which says what to do; a hostile label can have millions


class UserError(Exception):
    """A mistake that the user can fix, as one line: where (`file:line`), what was expected and found, what to do."""

    def __init__(self, message: str) -> None:
        """Join the lines of `message`, shorten it, and replace control characters in it, which a terminal would obey."""
        super().__init__(single_line(message))

    @property
    def mistakes(self) -> tuple[str, ...]:
        """What is wrong, a line for each mistake."""
        return (str(self),)

    @property
    def lines(self) -> tuple[str, ...]:
        """The mistakes to print: of many, the first ones and how many more there are."""
        more = len(self.mistakes) - _MOST
        return (*self.mistakes[:_MOST], *([f"and {more} more mistakes"] if more > 0 else ()))


class MistakesError(UserError):
    """Several mistakes of one input, to be fixed in one go."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Keep `mistakes`, of which there is at least one."""
        super().__init__(" | ".join(mistakes))
        self._mistakes = tuple(map(single_line, mistakes))

    @property
    def mistakes(self) -> tuple[str, ...]:
        """What is wrong, a line for each mistake."""
        return self._mistakes


def single_line(message: str) -> str:
    """Return `message` as one line of printable characters, without the middle of a long one."""
    joined = " ".join(message.split())
    if len(joined) > _LONGEST:
        joined = f"{joined[: _LONGEST - _LAST]} ... {joined[-_LAST:]}"
    return "".join(character if character.isprintable() else "?" for character in joined)


@contextmanager
def collecting(mistakes: list[str]) -> Iterator[None]:
    """Add the mistakes of a UserError raised inside to `mistakes`, so that further ones can be found."""
    try:
        yield
    except UserError as wrong:
        mistakes.extend(wrong.mistakes)


def raise_all(mistakes: Sequence[str]) -> None:
    """Raise the `mistakes`, if there are any."""
    if len(mistakes) == 1:
        raise UserError(mistakes[0])
    if mistakes:
        raise MistakesError(mistakes)


def first_of(invalid: "ValueError | ValidationError", whole: str = "the file") -> str:
    """Return the first problem of invalid data, also of such that is not JSON, and its place: `whole` if that is all of it."""
    if not hasattr(invalid, "errors"):
        return f"{whole}: Invalid JSON: {invalid}"
    first = invalid.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"
