"""All that a resolution depends on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from packaging.requirements import Requirement

from smokehouse.storage.files import sha256

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
    def before(self) -> datetime:
        """The first moment that no longer counts."""
        return _after(self.cutoff)

    def digest(self) -> str:
        """Return the SHA-256 over everything here in one canonical form."""
        return _digest(
            {
                "requirements": sorted(str(requirement) for requirement in self.requirements),
                "python": self.python,
                "platform": self.platform,
                "cutoff": str(self.cutoff),
                "left_out": self.left_out,
            }
        )


@dataclass(frozen=True)
class CondaInputs:
    """A question to a conda channel: these packages, on a machine with these virtual packages, as of this day.

    `specs` are conda's, such as python=3.11; those named in `devel` are wanted in that category alone. `virtual` has
    each virtual package with its version and build, such as __cuda, ("12.4", "0").
    """

    file: str
    specs: tuple[str, ...]
    devel: frozenset[str]
    channel: str
    subdir: str
    virtual: tuple[tuple[str, tuple[str, str]], ...]
    cutoff: date

    @property
    def before(self) -> datetime:
        """The first moment that no longer counts."""
        return _after(self.cutoff)

    def digest(self) -> str:
        """Return the SHA-256 over everything here in one canonical form."""
        return _digest(
            {
                "specs": sorted(self.specs),
                "devel": sorted(self.devel),
                "channel": self.channel,
                "subdir": self.subdir,
                "virtual": self.virtual,
                "cutoff": str(self.cutoff),
            }
        )


def name_of(spec: str) -> str:
    """Return the name of the package that a conda spec asks for."""
    return spec.replace(" ", "=").partition("=")[0].rstrip("<>!~")


def _after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def _digest(canonical: Mapping[str, object]) -> str:
    return sha256(json.dumps({"format": LOCK_FORMAT, **canonical}, sort_keys=True))
