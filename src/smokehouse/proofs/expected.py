"""The files that a lock and this checkout put into an image, each with its hash and its owner.

The image is trusted only for what cannot be made again: files that its build made from source distributions, and of these
only what such a build can make.
"""

import base64
import csv
import hashlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images.paths import ENV, INSTALLER, PREFIX, PROGRAMS, SITE_FILES, SMOKEHOUSE
from smokehouse.locks import Lock, LockedFile
from smokehouse.oci.filesystem import Entry, Tree
from smokehouse.programs.process import run

CONDA = "the conda packages"
COMPILED = "the compiled source"
_CHECKOUT = "this checkout"
_COMPILE_DEADLINE = 3600.0  # seconds
_COMPILE = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tree
tree.compile_python(Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
"""


@dataclass(frozen=True)
class ExpectedFile:
    """An expected file: the SHA-256 of its content or the target of a link, whether it `runs`, and its owner, for messages.

    A `made` file is in no artefact in this form, so the image's files.json has to list it. `member` is the wheel, and the
    member of it, that the file is a copy of.
    """

    owner: str
    sha256: str = ""
    target: str = ""
    runs: bool = False
    made: bool = False
    member: tuple[Path, str] | None = None

    def fits(self, entry: Entry) -> bool:
        """Return whether a file in an image has this content."""
        if self.target or entry.kind != "file":
            return entry.kind == "link" and entry.target == self.target
        if entry.sha256 == self.sha256:
            return True
        if self.member is None:
            return False
        # A wheel's RECORD may have wrong hashes; the wheel itself is what is locked.
        with zipfile.ZipFile(self.member[0]) as archive, archive.open(self.member[1]) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256  # type: ignore[arg-type]


@dataclass
class ExpectedFiles:
    """The files expected in an image above its base, by path. `sources` has the Python files that its build compiles."""

    checkout: Checkout
    locked: Lock
    files: dict[str, ExpectedFile] = field(default_factory=dict)
    sources: dict[str, bytes | tuple[Path, str]] = field(default_factory=dict)

    @cached_property
    def library(self) -> str:
        """The directory of the interpreter's library."""
        return f"{ENV}/lib/python{self.locked.python}"

    @cached_property
    def site(self) -> str:
        """The directory of the Python packages."""
        return f"{self.library}/site-packages"

    @cached_property
    def _unpack_step(self) -> Any:
        """The build's own step that unpacks wheels, for the text of console scripts."""
        path = self.checkout.file("docker/steps") / "unpack.py"
        spec = importlib.util.spec_from_file_location("smokehouse_unpack", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        before = [*sys.path]
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = before
        return module

    def add_conda(self, prefix: Path) -> None:
        """Add the conda packages, linked into the tar file `prefix`; raises UserError."""
        tree = Tree()
        tree.apply(prefix, "tar", str(prefix), 0)
        for path, entry in tree.entries.items():
            if entry.kind == "folder" or (path.startswith(f"{self.library}/") and "/__pycache__/" in path):
                continue
            record = path.startswith(f"{ENV}/conda-meta/")
            self.files[path] = ExpectedFile(CONDA, entry.sha256, entry.target, bool(entry.mode & 0o100), record)

    def add_wheel(self, wheel: Path) -> None:
        """Add the files of a wheel, and those that its installation makes; raises UserError."""
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            [info] = {name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")}
            rows = self._add_members(wheel, archive, info)
            made = [(f"{self.site}/{info}/INSTALLER", INSTALLER, False)]
            if f"{info}/entry_points.txt" in names:
                text = archive.read(f"{info}/entry_points.txt").decode()
                scripts = self._unpack_step.console_scripts(text, self.locked.python, wheel)
                made += [(f"{ENV}/bin/{name}", script.encode(), True) for name, script in scripts]
        for path, content, runs in made:
            rows.append((self._record_path(path), _digest(content), str(len(content))))
            self._put(path, ExpectedFile(wheel.name, _hex(_digest(content)), runs=runs, made=True))
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows([*sorted(rows), (f"{info}/RECORD", "", "")])
        digest = _hex(_digest(record.getvalue().encode()))
        self._put(f"{self.site}/{info}/RECORD", ExpectedFile(wheel.name, digest, made=True))

    def _add_members(self, wheel: Path, archive: zipfile.ZipFile, info: str) -> list[tuple[str, str, str]]:
        """Add the members of a wheel but RECORD, and return their rows of the RECORD that the installation writes."""
        known = {row[0]: row[1] for row in _rows(archive.read(f"{info}/RECORD")) if len(row) > 1}
        rows: list[tuple[str, str, str]] = []
        for member in archive.infolist():
            if member.is_dir() or member.filename == f"{info}/RECORD":
                continue
            path, kind = self._place(member.filename, info)
            digest = known.get(member.filename, "")
            size, runs, made = member.file_size, bool(member.external_attr >> 16 & 0o111) or kind == "scripts", False
            if kind == "scripts":
                content = archive.read(member)
                if content.startswith(b"#!python"):
                    content = f"#!{PREFIX}/bin/python{self.locked.python}".encode() + content[content.index(b"\n") :]
                digest, size, made = _digest(content), len(content), True
            elif not digest.startswith("sha256="):
                digest = _digest(archive.read(member))
            rows.append((self._record_path(path), digest, str(size)))
            source = None if made else (wheel, member.filename)
            self._put(path, ExpectedFile(wheel.name, _hex(digest), runs=runs, made=made, member=source))
            if path.endswith(".py"):
                self.sources[path] = (wheel, member.filename)
        return rows

    def add_smokehouse(self, folder: Path) -> None:
        """Add the files of this checkout in /opt/smokehouse, from the folder that the build copies them from."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(folder))
                below = name.removeprefix(f"{SITE_FILES}/")
                place = f"{self.site}/{below}" if below != name else f"{SMOKEHOUSE}/{name}"
                self._put_checkout(place, path.read_bytes(), runs=name in PROGRAMS)

    def add_built(self, sdist: LockedFile, archive: Path, tree: Tree) -> list[str]:
        """Add the files that were built from a source distribution, according to the RECORD in the image.

        Files that are in the source distribution are compared with it. The others, whose paths are returned, are limited to
        what only a build makes: libraries, metadata, scripts and a version. Raises UserError.
        """
        info = f"{re.sub(r'[-.]', '_', sdist.name)}-{sdist.version}.dist-info"
        record = f"{self.site}/{info}/RECORD"
        if record not in tree.kept:
            return []
        digests, packages = _members(archive)
        built = []
        for row in _rows(tree.kept[record]):
            path = os.path.normpath(f"{self.site}/{row[0]}") if row else ""
            entry = tree.entries.get(path)
            if path in self.files or entry is None or entry.kind != "file":
                continue
            name = path.removeprefix(f"{self.site}/")
            runs = bool(entry.mode & 0o100)
            if entry.sha256 in digests and path.rpartition("/")[2] in digests[entry.sha256]:
                self.files[path] = ExpectedFile(sdist.file, entry.sha256, runs=runs, made=True)
            elif self._can_be_built(name, info, packages, path):
                self.files[path] = ExpectedFile(sdist.file, entry.sha256, runs=runs, made=True)
                built.append(path)
            else:
                continue
            if path.endswith(".py") and path in tree.kept:
                self.sources[path] = tree.kept[path]
        return built

    def _can_be_built(self, name: str, info: str, packages: set[str], path: str) -> bool:
        if path.rpartition("/")[0] == f"{ENV}/bin":
            return True
        top, _, rest = name.partition("/")
        if top == info:
            return rest in ("RECORD", "INSTALLER", "METADATA", "WHEEL", "top_level.txt", "entry_points.txt") or (
                rest.startswith("licenses/")
            )
        return top in packages and name.endswith((".so", "/git_version_info_installed.py"))

    def add_compiled(self, prefix: Path, work: Path) -> None:
        """Add the bytecode of all `sources`, compiled in the folder `work` by the locked interpreter; raises UserError."""
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with tarfile.open(prefix) as archive:
                archive.extractall(work, filter="tar")
            self._unpack_sources(work)
            python = work / ENV / "bin" / "python"
            folders = [str(work / self.library), str(work / SMOKEHOUSE)]
            command = [python, "-I", "-S", "-B", "-c", _COMPILE, self.checkout.file("docker/steps"), work, *folders]
            environ = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
            ended = run([str(part) for part in command], deadline=_COMPILE_DEADLINE, environ=environ, cwd=work)
            if ended.code:
                raise UserError(
                    f"the locked Python cannot compile its packages on this machine: {ended.stderr[-300:]}; "
                    "verify on linux/amd64 with glibc, as the lock requires"
                )
            for folder in folders:
                for path in Path(folder).rglob("__pycache__/*.pyc"):
                    with path.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                    self.files[str(path.relative_to(work))] = ExpectedFile(COMPILED, digest, made=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _unpack_sources(self, work: Path) -> None:
        archives: dict[Path, list[tuple[str, str]]] = {}
        for path, source in self.sources.items():
            if isinstance(source, tuple):
                archives.setdefault(source[0], []).append((path, source[1]))
                continue
            target = work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source)
        for wheel, members in archives.items():
            with zipfile.ZipFile(wheel) as archive:
                for path, member in members:
                    target = work / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(member))

    def _put_checkout(self, path: str, content: bytes, *, runs: bool) -> None:
        self._put(path, ExpectedFile(_CHECKOUT, _hex(_digest(content)), runs=runs, made=True))
        if path.endswith(".py"):
            self.sources[path] = content

    def _put(self, path: str, expected: ExpectedFile) -> None:
        if "/__pycache__/" not in path:
            self.files[path] = expected

    def _place(self, name: str, info: str) -> tuple[str, str]:
        """Return where a member of a wheel is installed, and the kind of that directory; raises UserError."""
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise UserError(f"{info}: expected files inside the wheel, found {name!r}; do not trust this wheel")
        data = f"{info.removesuffix('.dist-info')}.data/"
        if not name.startswith(data):
            return f"{self.site}/{name}", "purelib"
        kind, _, rest = name.removeprefix(data).partition("/")
        places = {
            "purelib": self.site,
            "platlib": self.site,
            "scripts": f"{ENV}/bin",
            "headers": f"{ENV}/include/python{self.locked.python}/{info.split('-')[0]}",
            "data": ENV,
        }
        return f"{places[kind]}/{rest}", kind

    def _record_path(self, path: str) -> str:
        """Return a path as RECORD writes it."""
        if path.startswith(f"{self.site}/"):
            return path.removeprefix(f"{self.site}/")
        return f"../../../{path.removeprefix(f'{ENV}/')}"


def _members(archive: Path) -> tuple[Mapping[str, set[str]], set[str]]:
    """Return the file names of a source distribution by SHA-256, and the names of its directories."""
    digests: dict[str, set[str]] = {}
    tops: set[str] = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and len(parts) > 1 and (file := tar.extractfile(member)):
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                digests.setdefault(digest, set()).add(parts[-1])
                tops.update(parts[1:-1])
    return digests, tops


def _rows(record: bytes) -> Iterable[list[str]]:
    return csv.reader(record.decode("utf-8", "replace").splitlines())


def _digest(content: bytes) -> str:
    """Return the SHA-256 of `content` as RECORD writes it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _hex(digest: str) -> str:
    text = digest.removeprefix("sha256=")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    except ValueError:
        return ""
