"""What the builder tells a person at a terminal."""

import sys


def status(message: str) -> None:
    """Say what goes on."""
    print(f"smokehouse: {message}", file=sys.stderr, flush=True)
