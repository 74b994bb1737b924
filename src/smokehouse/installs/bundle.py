"""Bundles: a folder with everything that a machine without a network needs to install an environment."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.errors import UserError, first_of
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import LOCK_JSON, Lock
from smokehouse.storage import files

MANIFEST = "manifest.json"
LOCK = "lock"
WHEELS = "wheels"
CONDA = "conda"

_PART = r"[A-Za-z0-9_][A-Za-z0-9._!+-]*"  # no leading dot, so no way out of the folder
_Path = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART})*$")]
_Sha256 = Annotated[str, StringConstraints(pattern=f"^{files.SHA256}$")]


class BundleManifest(BaseModel):
    """manifest.json of a bundle, which is there when the bundle is complete: every other file with its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    environment: str
    halves: tuple[Literal["conda", "pip"], ...]
    devel: bool = Field(description="whether the conda half has the compilers and the CUDA toolkit")
    files: dict[_Path, _Sha256]


@dataclass(frozen=True)
class Bundle:
    """A complete bundle. `digest` is the SHA-256 of its manifest.json."""

    folder: Path
    manifest: BundleManifest
    digest: str

    @property
    def wheels(self) -> Path:
        """The folder of all wheels and source distributions."""
        return self.folder / WHEELS

    @property
    def conda(self) -> Path:
        """The conda half, laid out as a channel."""
        return self.folder / CONDA

    @property
    def has_conda(self) -> bool:
        """Whether it has the conda packages."""
        return "conda" in self.manifest.halves

    @property
    def has_devel(self) -> bool:
        """Whether it has the compilers and the CUDA toolkit."""
        return self.manifest.devel

    def require_conda(self, *, devel: bool) -> None:
        """Raise UserError where it lacks conda packages: those of the main category, or those of `devel`."""
        name, folder = self.manifest.environment, self.folder
        if not self.has_conda:
            raise UserError(f"{folder}: has the pip half only; make it without --only pip: nox -s bundle -- {name} {folder}")
        if devel and not self.has_devel:
            raise UserError(f"{folder}: has no compilers; make it with --devel: nox -s bundle -- {name} {folder} --devel")

    def verify(self) -> None:
        """Raise UserError naming the first file that is not as it was bundled."""
        places = [self.folder / path for path in self.manifest.files]
        with ThreadPoolExecutor() as threads:
            digests = threads.map(lambda place: files.hashed(place) if place.is_file() else None, places)
            for place, found, digest in zip(places, digests, self.manifest.files.values(), strict=True):
                if found != digest:
                    how = "not as it was bundled, by its hash" if found else "gone from the bundle"
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise UserError(f"{place}: {how}; copy or make the bundle again")


def read(folder: Path, locked: LockedEnvironment) -> Bundle:
    """Return the bundle in `folder`, which must be of this lock; raises UserError."""
    folder, name = folder.absolute(), locked.name
    cure = f"run nox -s bundle -- {name} {folder}"
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = BundleManifest.model_validate_json(text)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a complete bundle, there is no {MANIFEST}; {cure}") from None
    except OSError as broken:
        raise UserError(f"{folder / MANIFEST}: cannot be read ({broken.strerror}); {cure}") from None
    except ValidationError as invalid:
        raise UserError(f"{folder / MANIFEST}: {first_of(invalid)}; {cure}") from None
    if manifest.environment != name:
        raise UserError(f"{folder}: a bundle of {manifest.environment}, not of {name}; {cure}")
    if manifest.files.get(f"{LOCK}/{LOCK_JSON}") != locked.digest:
        raise UserError(f"{folder}: made from another lock of {name} than the one here; check that one out, or {cure}")
    return Bundle(folder, manifest, files.sha256(text))


def pylock(lock: Lock) -> str:
    """Return a PEP 751 lock of the PyPI packages, whose files lie in the bundle that it is written to."""
    lines = [
        'lock-version = "1.0"',
        'created-by = "smokehouse"',
        f"requires-python = {json.dumps(f'=={lock.python}.*')}",
    ]
    for file in lock.pip:
        where = f"{{ path = {json.dumps(f'{WHEELS}/{file.file}')}, hashes = {{ sha256 = {json.dumps(file.sha256)} }} }}"
        lines += ["", "[[packages]]", f"name = {json.dumps(file.name)}", f"version = {json.dumps(file.version)}"]
        lines.append(f"wheels = [{where}]" if file.file.endswith(".whl") else f"sdist = {where}")
    return "\n".join(lines) + "\n"
