"""lock.json: what the other files of a lock have no room for."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.errors import UserError, first_of
from smokehouse.storage import files

MANIFEST = "lock.json"
# What records of a channel say where their files lie, whichever mirror they were read from.
HOME = "https://conda.anaconda.org/"

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
    """One package of the conda half. Category `devel` is for the compilers and the CUDA toolkit, with what only they need."""

    build: str
    subdir: str = Field(pattern=r"^[a-z0-9-]+$")
    category: Literal["main", "devel"]
    license: str | None = None

    @property
    def path(self) -> str:
        """Where the file lies in a channel, and in any mirror of it."""
        return f"{self.subdir}/{self.file}"


class Channel(_Model):
    """Where the conda half was solved from: the channel's name, and a digest of the records that were considered."""

    name: str
    snapshot: Sha256 = Field(pattern=_SHA256)


class Manifest(_Model):
    """The whole of lock.json. `files` has the SHA-256 of the lock's other files by name, `inputs` that of the question."""

    format: Literal[1] = 1  # raised whenever this file changes its meaning
    environment: str
    python: str
    platform: str
    cutoff: date
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
    def home(self) -> str:
        """The URL that the channel of the conda half has for the world."""
        return f"{HOME}{self.channel.name}"

    @property
    def main(self) -> tuple[CondaPackage, ...]:
        """The conda half without compilers and CUDA toolkit."""
        return tuple(package for package in self.conda if package.category == "main")

    def text(self) -> str:
        """Return the manifest as it is written."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def read(path: Path, name: str, cure: str) -> Manifest:
    """Read the lock.json `path`, called `name` in messages, and see that the files beside it are the ones it is of.

    Raises UserError ending in `cure`.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        for other, digest in manifest.files.items():
            if files.sha256((path.parent / other).read_bytes()) != digest:
                raise UserError(f"{name}: {other} beside it was edited since the lock was made; {cure}")
    except FileNotFoundError as missing:
        raise UserError(f"{name}: {Path(missing.filename).name} does not exist; {cure}") from None
    except OSError as broken:
        raise UserError(f"{name}: cannot be read ({broken}); {cure}") from None
    except ValidationError as invalid:
        raise UserError(f"{name}: {first_of(invalid)}; {cure}") from None
    return manifest
