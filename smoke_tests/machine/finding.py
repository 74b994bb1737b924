"""What one check of the machine found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One finding: `what` was found `where`, and how to fix it. Training fails after `fail`; after `warn` some of it may."""

    level: Level
    what: str
    where: str
    fix: str = ""

    def __str__(self) -> str:
        """Return it as one line, without the level."""
        return f"{self.where}: {self.what}{f'; {self.fix}' if self.fix else ''}"


def ok(where: str, what: str) -> Finding:
    """Return a finding that nothing follows from."""
    return Finding("ok", what, where)
