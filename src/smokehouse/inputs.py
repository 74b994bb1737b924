"""All that a resolution depends on."""

import json
from dataclasses import dataclass
from datetime import date, timedelta

from packaging.requirements import Requirement

from smokehouse.files import sha256

# Raised whenever the same inputs give a different file, so that old locks are seen to be old.
LOCK_FORMAT = 1


@dataclass(frozen=True)
class Inputs:
    """A question to the index: these packages, for this Python and platform, as of this day.

    `file` is the name of the file that asks. Without a `platform` the answer must hold on all of them.
    """

    file: str
    requirements: tuple[Requirement, ...]
    python: str
    platform: str | None
    cutoff: date
    left_out: tuple[str, ...] = ()

    @property
    def before(self) -> str:
        """The first moment that no longer counts, as an RFC 3339 timestamp."""
        return f"{self.cutoff + timedelta(days=1)}T00:00:00Z"

    def digest(self) -> str:
        """Return the SHA-256 over everything here in one canonical form."""
        canonical = {
            "format": LOCK_FORMAT,
            "requirements": sorted(str(requirement) for requirement in self.requirements),
            "python": self.python,
            "platform": self.platform,
            "cutoff": str(self.cutoff),
            "left_out": self.left_out,
        }
        return sha256(json.dumps(canonical, sort_keys=True))
