"""The places of files in a checkout."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from smokehouse.errors import UserError

# An image has this name too, and the names of images have no capitals.
_ENVIRONMENT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def is_environment_name(name: str) -> bool:
    """Return whether `name` is valid for an environment: lower-case letters, digits, '.', '_' and '-'."""
    return _ENVIRONMENT_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Checkout:
    """A checkout of Smokehouse, or a folder with the same layout."""

    root: Path

    @classmethod
    def find(cls, start: Path) -> "Checkout":
        """Return the checkout that contains `start`; raises UserError where there is none."""
        for folder in (start, *start.parents):
            if (folder / "environments").is_dir():
                return cls(folder)
        raise UserError(f"{start}: environments/ not found here or in a parent folder; run this inside a Smokehouse checkout")

    def environment(self, name: str) -> Path:
        """Return the folder that defines `name`; raises UserError where the name is invalid or not found."""
        known = self.environments()
        listed = f"known: {', '.join(known) or 'none'}"
        if not is_environment_name(name):
            raise UserError(f"invalid environment name {name!r}: use lower-case letters, digits, '.', '_' and '-'; {listed}")
        if name in known:
            return self.root / "environments" / name
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"environments/{name}: environment not found; {hint}{listed}; "
            f"to add one, create the folder with environment.yml and stack.toml"
        )

    def environments(self) -> list[str]:
        """Return the names of all environments, sorted."""
        return self._folders("environments")

    def locks(self) -> list[str]:
        """Return the names of all lock folders, sorted."""
        return self._folders("lockfiles")

    def lock(self, name: str) -> Path:
        """Return the folder of the lock of `name`, whether it exists or not."""
        return self.root / "lockfiles" / name

    def tools_lock(self) -> Path:
        """Return the file that locks the builder's own tools."""
        return self.root / "lockfiles" / "tools.txt"

    def installation(self, name: str) -> Path:
        """Return the folder to install `name` in."""
        return self.root / "build" / "environments" / name

    def bundled(self, name: str) -> Path:
        """Return the folder to install `name` in from a bundle."""
        return self.root / "build" / "bundled" / name

    def relative(self, path: Path) -> str:
        """Return `path` relative to the root of the checkout, for messages; unchanged if it is outside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _folders(self, place: str) -> list[str]:
        parent = self.root / place
        return sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
