"""Bundles: folders with everything that a machine without a network needs to install an environment."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smokehouse.console import as_typed
from smokehouse.environments.documents import read_json
from smokehouse.errors import UserError
from smokehouse.locks import LOCK_JSON, Lock, LockedEnvironment
from smokehouse.storage import files

MANIFEST = "manifest.json"
LOCK = "lock"
WHEELS = "wheels"
CONDA = "conda"

_PART = r"[A-Za-z0-9_][A-Za-z0-9._!+-]*"  # no leading dot, so that no path leaves the folder
_Path = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART})*$")]
_Sha256 = Annotated[str, StringConstraints(pattern=f"^{files.SHA256}$")]


class BundleManifest(BaseModel):
    """manifest.json of a bundle: the SHA-256 of every other file. It exists when the bundle is complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    environment: str
    halves: tuple[Literal["conda", "pip"], ...] = Field(description="the installers that it has packages for")
    devel: bool = Field(description="whether it has the compilers and the CUDA toolkit")
    files: dict[_Path, _Sha256]


@dataclass(frozen=True)
class Bundle:
    """A complete bundle. `digest` is the SHA-256 of its manifest.json."""

    folder: Path
    manifest: BundleManifest
    digest: str

    @property
    def wheels(self) -> Path:
        """The folder with wheels and source distributions."""
        return self.folder / WHEELS

    @property
    def conda(self) -> Path:
        """The folder with conda packages, laid out as a channel."""
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
        """Raise UserError where it has no conda packages, or with `devel` no compilers."""
        remedy = f"run {as_typed('bundle', self.manifest.environment, str(self.folder))}"
        if not self.has_conda:
            raise UserError(f"{self.folder}: expected conda packages, found PyPI packages only; {remedy}")
        if devel and not self.has_devel:
            raise UserError(f"{self.folder}: expected compilers and CUDA toolkit, found none; {remedy} --devel")

    def verify(self) -> None:
        """Raise UserError for the first file that is missing or differs from its SHA-256."""
        paths = [self.folder / path for path in self.manifest.files]
        with ThreadPoolExecutor() as threads:
            digests = threads.map(lambda path: files.hashed(path) if path.is_file() else None, paths)
            for path, found, digest in zip(paths, digests, self.manifest.files.values(), strict=True):
                if found != digest:
                    problem = f"expected SHA-256 {digest}, found {found}" if found else "not found"
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise UserError(f"{path}: {problem}; copy or make the bundle again")


def read(folder: Path, locked: LockedEnvironment) -> Bundle:
    """Return the bundle in `folder`, which must be of this lock; raises UserError."""
    folder, name = folder.absolute(), locked.name
    path, remedy = folder / MANIFEST, f"run {as_typed('bundle', name, str(folder))}"
    if not path.exists():
        raise UserError(f"{folder}: expected a complete bundle, {MANIFEST} not found; {remedy}")
    manifest, digest = read_json(path, str(path), BundleManifest, remedy)
    if manifest.environment != name:
        raise UserError(f"{folder}: expected a bundle of {name}, found one of {manifest.environment}; {remedy}")
    if manifest.files.get(f"{LOCK}/{LOCK_JSON}") != locked.digest:
        lock = locked.files.name
        raise UserError(f"{folder}: expected a bundle of {lock}, found one of another lock; check that one out, or {remedy}")
    return Bundle(folder, manifest, digest)


def pylock(lock: Lock) -> str:
    """Return a lock of the PyPI packages whose files are those of the bundle.

    See: PEP 751
    """
    lines = [
        'lock-version = "1.0"',
        'created-by = "smokehouse"',
        f"requires-python = {json.dumps(f'=={lock.python}.*')}",
    ]
    for file in lock.pip:
        source = f"{{ path = {json.dumps(f'{WHEELS}/{file.file}')}, hashes = {{ sha256 = {json.dumps(file.sha256)} }} }}"
        lines += ["", "[[packages]]", f"name = {json.dumps(file.name)}", f"version = {json.dumps(file.version)}"]
        lines.append(f"wheels = [{source}]" if file.file.endswith(".whl") else f"sdist = {source}")
    return "\n".join(lines) + "\n"
