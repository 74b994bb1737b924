"""The inputs of a resolution: everything that its result depends on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from packaging.requirements import Requirement

from smokehouse.storage.files import sha256

# Increased whenever the same inputs give a different file, so that older locks are out of date.
LOCK_FORMAT = 1


@dataclass(frozen=True)
class Inputs:
    """PyPI packages to resolve, for one Python and platform, with the files that the index had on the cut-off day.

    `file` is the name of the file that requires them. Without a `platform` they are resolved for all platforms.
    `constraints` are lines NAME==VERSION, which lock no package that nothing requires; no lock is made with them.
    """

    file: str
    requirements: tuple[Requirement, ...]
    python: str
    platform: str | None
    cutoff: date
    left_out: tuple[str, ...] = ()
    constraints: str = ""

    @property
    def before(self) -> datetime:
        """The end of the cut-off day: files that were uploaded then or later are ignored."""
        return _end_of(self.cutoff)

    def digest(self) -> str:
        """Return the SHA-256 over all fields of a lock in one canonical form."""
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
    """Conda packages to solve for, on a machine with certain virtual packages, with the records of the cut-off day.

    `specs` are conda match specs, such as python=3.11; those in `devel` are for that category only. `virtual` has each
    virtual package with its version and build, such as __cuda, ("12.4", "0").
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
        """The end of the cut-off day: records from then or later are ignored."""
        return _end_of(self.cutoff)

    def digest(self) -> str:
        """Return the SHA-256 over all fields in one canonical form."""
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


def package_name(spec: str) -> str:
    """Return the name of the package in a conda match spec."""
    return spec.replace(" ", "=").partition("=")[0].rstrip("<>!~")


def _end_of(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def _digest(fields: Mapping[str, object]) -> str:
    return sha256(json.dumps({"format": LOCK_FORMAT, **fields}, sort_keys=True))
