"""The one exception that reaches a user."""


class UserError(Exception):
    """Something the user can mend: what is wrong, where (`file:line`) and what to do, as one line."""

    def __init__(self, message: str) -> None:
        """Join `message` to a single line."""
        super().__init__(" ".join(message.split()))
