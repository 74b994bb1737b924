"""The places of files: in a checkout, in a user's own folder, and in an installed package."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from smokehouse.errors import UserError

# An image has this name too, and the names of images have no capitals.
_ENVIRONMENT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

# The folder among the environments with what several of them share, so that no environment has this name.
_STACKS = "stacks"

# Only an installed package has this folder: the wheel is built with the files of the checkout that its programs need.
_PACKAGED = Path(__file__).with_name("_data")

# The environment that verbs take where none is named: the one that the README proves.
DEFAULT_ENVIRONMENT = "qwen2.5-vl"

# The label of an image with the name of its environment, by which a smoke test and a verification find it in a checkout.
ENVIRONMENT_LABEL = "io.smokehouse.environment"

# A user's folder may well have a docker/ of its own; these files show whose it is.
_MARKERS = {"cluster": "cluster/README.md", "docker": "docker/base.toml", "smoke_tests": "smoke_tests/__main__.py"}


def is_environment_name(name: str) -> bool:
    """Return whether `name` is valid for an environment: lower-case letters, digits, '.', '_' and '-'."""
    return _ENVIRONMENT_NAME.fullmatch(name) is not None


def data_folder() -> Path:
    """Return the folder of installations and reports for those who have no folder with environments."""
    if home := os.environ.get("SMOKEHOUSE_HOME"):
        return Path(home).absolute()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share", "smokehouse")


@dataclass(frozen=True)
class Checkout:
    """A checkout of Smokehouse, or a folder with environments/ and lockfiles/ of its own.

    `packaged` has the files of an installed package, None where Smokehouse runs from a checkout: environments that `root`
    does not have, and the programs. Where there is no other folder, it is the root, too.
    """

    root: Path
    packaged: Path | None = None

    @classmethod
    def find(cls, start: Path) -> "Checkout":
        """Return the checkout that contains `start`, else that of the installed package; raises UserError without any."""
        packaged = _PACKAGED if _PACKAGED.is_dir() else None
        for folder in (start, *start.parents):
            if (folder / "environments").is_dir():
                return cls(folder, packaged)
        if packaged:
            return cls(packaged, packaged)
        raise UserError(f"{start}: environments/ not found here or in a parent folder; run this inside a Smokehouse checkout")

    @property
    def is_own(self) -> bool:
        """Whether the root is a folder of the user, which can be changed, and not the installed package."""
        return self.root != self.packaged

    @property
    def has_tools(self) -> bool:
        """Whether it has the lock of Smokehouse's own tools, as each checkout has."""
        return self.packaged is None or (self.is_own and self.tools_lock().is_file())

    @property
    def build(self) -> Path:
        """The folder of everything that is made from locks: installations, reports, bundles, inputs of images."""
        return self.root / "build" if self.is_own else data_folder()

    def require_own(self, what: str, path: str = "environments") -> None:
        """Raise UserError where only the installed package has `path`, because `what` would change what belongs to it."""
        if self.packaged and not (self.is_own and (self.root / path).exists()):
            raise UserError(
                f"{what}: expected {path} in this folder or a parent, found it only in the installed package, which is not "
                f"changed; run this in a checkout of Smokehouse, or in a folder with environments/NAME/ of your own"
            )

    def file(self, path: str) -> Path:
        """Return a file or folder of Smokehouse itself, in cluster/, docker/ or smoke_tests/."""
        marker = _MARKERS[path.partition("/")[0]]
        own = self.packaged is None or (self.root / marker).is_file()
        return (self.root if own or not self.packaged else self.packaged) / path

    def loader(self) -> Path:
        """Return the project of smokehouse-loader: that of the root if it has one, else the one that belongs to this code."""
        for folder in (self.root, self.packaged or Path(__file__).parents[2]):
            project = folder / "packages" / "smokehouse-loader"
            if (project / "pyproject.toml").is_file():
                return project
        raise UserError(f"{project}: expected the project of smokehouse-loader, not found; install Smokehouse again")

    def environment(self, name: str) -> Path:
        """Return the folder that defines `name`; raises UserError where the name is invalid or not found."""
        known = self.environments()
        listed = f"known: {', '.join(known) or 'none'}"
        if not is_environment_name(name):
            raise UserError(f"invalid environment name {name!r}: use lower-case letters, digits, '.', '_' and '-'; {listed}")
        if name in known:
            return self._owner(name) / "environments" / name
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"environments/{name}: environment not found; {hint}{listed}; "
            f"to add one, create the folder with environment.yml and stack.toml"
        )

    def environments(self) -> list[str]:
        """Return the names of all environments, sorted: those of the root, and those of the package."""
        return sorted({*self.own_environments(), *_environments(self.packaged)})

    def own_environments(self) -> list[str]:
        """Return the names of the environments of the root, sorted."""
        return _environments(self.root)

    def stacks(self, environment: str) -> Path:
        """Return the folder of the stacks that `environment` can inherit, which are beside it, whether it exists or not."""
        return self._owner(environment) / "environments" / _STACKS

    def locks(self) -> list[str]:
        """Return the names of all lock folders of the root, sorted."""
        return _folders(self.root, "lockfiles")

    def lock(self, name: str) -> Path:
        """Return the folder of the lock of `name`, whether it exists or not."""
        return self._owner(name) / "lockfiles" / name

    def report(self, name: str) -> Path:
        """Return the report that is the evidence for `name`, whether it exists or not."""
        return self._owner(name) / "docs" / "environments" / f"{name}.json"

    def page(self, name: str) -> Path:
        """Return the page about `name`, whether it exists or not."""
        return self.report(name).with_suffix(".md")

    def audit(self, name: str) -> Path:
        """Return the result of an audit of `name` that is committed, of the Debian base for "", whether it exists or not."""
        return (self._owner(name) if name else self.root) / "docs" / "audits" / f"{name or '_base'}.json"

    def matrix_folder(self) -> Path:
        """Return the folder of the grids and cells of compatibility matrices, of the root if it has one."""
        own = self.root / "matrix"
        return own if own.is_dir() or not self.packaged else self.packaged / "matrix"

    def tools_lock(self) -> Path:
        """Return the file that locks the builder's own tools."""
        return self.root / "lockfiles" / "tools.txt"

    def installation(self, name: str) -> Path:
        """Return the folder to install `name` in."""
        return self.build / "environments" / name

    def bundled(self, name: str) -> Path:
        """Return the folder to install `name` in from a bundle."""
        return self.build / "bundled" / name

    def relative(self, path: Path) -> str:
        """Return `path` relative to the root of the checkout, for messages; unchanged if it is outside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _owner(self, name: str) -> Path:
        """Return the folder whose environment `name` is used: the root comes before the package."""
        inherited = self.packaged and name not in self.own_environments() and name in _environments(self.packaged)
        return self.packaged if self.packaged and inherited else self.root


def _environments(root: Path | None) -> list[str]:
    return [name for name in _folders(root, "environments") if name != _STACKS]


def _folders(root: Path | None, place: str) -> list[str]:
    parent = root / place if root else None
    return sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent and parent.is_dir() else []
