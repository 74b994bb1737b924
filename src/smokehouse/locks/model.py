"""lock.json: every artefact of a lock with its hash, and the digests of the files beside it."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.errors import UserError, first_of
from smokehouse.storage import files

LOCK_JSON = "lock.json"
# The records of a channel give URLs below this, whichever mirror they were read from.
CHANNELS = "https://conda.anaconda.org/"

Sha256 = str
_SHA256 = f"^{files.SHA256}$"
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._!+-]*$"  # of a file in a folder of ours: no separator, no leading dot


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LockedFile(_Model):
    """One artefact of a lock. `size` is in bytes, 0 where the index does not say."""

    name: str = Field(pattern=_NAME)
    version: str
    file: str = Field(pattern=_NAME)
    size: int = Field(ge=0)
    sha256: Sha256 = Field(pattern=_SHA256)


class CondaPackage(LockedFile):
    """A conda package. Category `devel` is for the compilers and the CUDA toolkit, with what only they need."""

    build: str
    subdir: str = Field(pattern=r"^[a-z0-9-]+$")
    category: Literal["main", "devel"]
    license: str | None = None

    @property
    def path(self) -> str:
        """Where the file lies in a channel, and in any mirror of it."""
        return f"{self.subdir}/{self.file}"


class Channel(_Model):
    """The conda channel that was solved from: its name, and a digest of the records that were considered."""

    name: str
    snapshot: Sha256 = Field(pattern=_SHA256)


class Lock(_Model):
    """A lock: lock.json. `files` has the SHA-256 of the lock's other files by name, `inputs` that of what was resolved."""

    format: Literal[1] = 1  # raised whenever this file changes its meaning
    environment: str
    python: str
    platform: str
    cutoff: date
    unsettled: Literal[True] | None = None  # whether the index could still add files before the cut-off when it was asked
    inputs: Sha256 = Field(pattern=_SHA256)
    virtual_packages: dict[str, str]
    channel: Channel
    tools: dict[str, str]
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
        """The names of the packages that are built from source where they are installed."""
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
    try:
        lock = Lock.model_validate_json(path.read_bytes())
        for other, digest in lock.files.items():
            if files.sha256((path.parent / other).read_bytes()) != digest:
                raise UserError(f"{name}: {other} was edited since the lock was made; {remedy}")
    except FileNotFoundError as missing:
        raise UserError(f"{name}: {Path(missing.filename).name} not found; {remedy}") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken}); {remedy}") from None
    except ValidationError as invalid:
        raise UserError(f"{name}: {first_of(invalid)}; {remedy}") from None
    return lock
