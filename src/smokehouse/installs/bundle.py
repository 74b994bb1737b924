"""Bundles: folders with everything that a machine without a network needs to install an environment."""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smokehouse.console import as_typed
from smokehouse.environments.documents import read_json
from smokehouse.errors import UserError
from smokehouse.locks import LOCK_JSON, Lock, LockedEnvironment, LockedFile
from smokehouse.storage import files

MANIFEST = "manifest.json"
LOCK = "lock"
WHEELS = "wheels"
CONDA = "conda"
PYLOCK = "pylock.toml"

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
    """A complete bundle, whose manifest has the hashes of the lock. `digest` is the SHA-256 of its manifest.json."""

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
    expected = {path: file.sha256 for path, file in artefacts(locked.lock, manifest.halves, devel=manifest.devel).items()}
    expected |= {path: files.sha256(text) for path, text in texts(locked).items()}
    # Its manifest says what was copied with it, the lock what has to be there: only files with the lock's hashes are used.
    for file in sorted(expected.keys() | manifest.files.keys()):
        found, locked_digest = manifest.files.get(file), expected.get(file)
        if found != locked_digest:
            wanted = f"SHA-256 {locked_digest} from the lock" if locked_digest else "no such file"
            raise UserError(f"{path}: {file}: expected {wanted}, found {found or 'none'}; do not trust it, or {remedy}")
    return Bundle(folder, manifest, digest)


def artefacts(lock: Lock, halves: Collection[str], *, devel: bool) -> dict[str, LockedFile]:
    """Return the artefacts of a lock by their paths in a bundle that has packages for the installers `halves`."""
    found: dict[str, LockedFile] = {f"{WHEELS}/{file.file}": file for file in (*lock.pip, *lock.build)}
    conda = () if "conda" not in halves else lock.conda if devel else lock.main
    return found | {f"{CONDA}/{package.path}": package for package in conda}


def texts(locked: LockedEnvironment) -> dict[str, str]:
    """Return the files of the lock itself by their paths in a bundle, and a lock of its PyPI packages for other installers."""
    names = (LOCK_JSON, *locked.lock.files)
    found = {f"{LOCK}/{name}": (locked.files.folder / name).read_text("utf-8") for name in names}
    return found | {PYLOCK: pylock(locked.lock)}


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
