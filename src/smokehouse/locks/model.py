"""lock.json: every artefact of a lock with its hash, and the digests of the files beside it."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smokehouse.environments.documents import read_json
from smokehouse.errors import UserError
from smokehouse.storage import files

LOCK_JSON = "lock.json"
# Locks and records use the URLs of the public channels, whichever mirror was read.
CHANNELS = "https://conda.anaconda.org/"

Sha256 = str
_SHA256 = f"^{files.SHA256}$"
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._!+-]*$"  # no separator and no leading dot: a file in the folder


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LockedFile(_Model):
    """One artefact of a lock. `size` is in bytes, 0 if the index does not list it."""

    name: str = Field(pattern=_NAME)
    version: str
    file: str = Field(pattern=_NAME)
    size: int = Field(ge=0)
    sha256: Sha256 = Field(pattern=_SHA256)


class CondaPackage(LockedFile):
    """A conda package. Category `devel` is for compilers and CUDA toolkit, and for dependencies of nothing else."""

    build: str
    subdir: str = Field(pattern=r"^[a-z0-9-]+$")
    category: Literal["main", "devel"]
    license: str | None = None

    @property
    def path(self) -> str:
        """The path of the file in a channel and in its mirrors."""
        return f"{self.subdir}/{self.file}"


class Channel(_Model):
    """The conda channel that was solved from: its name, and a digest of all candidate records."""

    name: str
    snapshot: Sha256 = Field(pattern=_SHA256)


class Lock(_Model):
    """A lock: lock.json. `files` has the SHA-256 of the lock's other files by name, `inputs` that of what was resolved."""

    format: Literal[1] = 1  # raised whenever this file changes its meaning
    environment: str
    python: str
    platform: str
    cutoff: date
    unsettled: Literal[True] | None = None  # whether the index could still add files from before the cut-off
    inputs: Sha256 = Field(pattern=_SHA256)
    virtual_packages: dict[str, str]
    channel: Channel
    tools: dict[Annotated[str, StringConstraints(pattern=_NAME)], Annotated[str, StringConstraints(pattern=_NAME)]]
    files: dict[Annotated[str, StringConstraints(pattern=_NAME)], Sha256]
    conda: tuple[CondaPackage, ...]
    pip: tuple[LockedFile, ...]
    build: tuple[LockedFile, ...]

    @property
    def download(self) -> int:
        """The size of all artefacts of the main category in bytes."""
        return sum(package.size for package in (*self.main, *self.pip, *self.build))

    @property
    def sdists(self) -> tuple[str, ...]:
        """The names of the packages that are source distributions, built when they are installed."""
        return tuple(file.name for file in (*self.pip, *self.build) if not file.file.endswith(".whl"))

    @property
    def channel_url(self) -> str:
        """The public URL of the channel that the conda packages are from."""
        return f"{CHANNELS}{self.channel.name}"

    @property
    def main(self) -> tuple[CondaPackage, ...]:
        """The conda packages without compilers and CUDA toolkit."""
        return tuple(package for package in self.conda if package.category == "main")

    def text(self) -> str:
        """Return lock.json as it is written."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def read(path: Path, name: str, remedy: str) -> Lock:
    """Read the lock.json at `path`, called `name` in messages, and verify the files beside it by their digests.

    Raises UserError ending in `remedy`.
    """
    lock, _ = read_json(path, name, Lock, remedy)
    for other, digest in lock.files.items():
        try:
            found = files.hashed(path.with_name(other))
        except FileNotFoundError:
            raise UserError(f"{name}: {other} not found; {remedy}") from None
        except OSError as broken:
            raise UserError(f"{name}: {other} cannot be read ({broken.strerror}); {remedy}") from None
        if found != digest:
            raise UserError(f"{name}: {other} was edited since the lock was made; {remedy}")
    return lock
