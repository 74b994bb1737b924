"""The programs that print the texts of the table."""

PRINTED: dict[str, tuple[str, ...]] = {}
