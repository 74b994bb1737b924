"""The base of images: Debian, from a list of packages with their hashes, as an image of one layer."""

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images.debian_lock import LOCK, REMEDY, DebianPackage, Definition, fetch_packages, read, read_definition
from smokehouse.oci.layout import write_layout
from smokehouse.oci.model import DIGEST
from smokehouse.programs.process import Ended, run
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

EPOCH = 315532800  # seconds: 1980, the first time that a zip file can tell, so that every step can say it
TAG = "base"
_FORMAT = 2  # raised whenever the same lock makes another base
_MAKING = 1200.0

# Made by mmdebstrap or the packages' scripts and of no use in an image, or different every time.
_UNWANTED = (
    "etc/resolv.conf etc/hostname var/cache/apt var/cache/debconf var/cache/ldconfig/aux-cache var/log/apt var/log/dpkg.log "
    "var/log/alternatives.log var/log/bootstrap.log var/lib/apt/lists var/lib/dpkg/status-old var/lib/dpkg/available-old"
)


@dataclass(frozen=True)
class Base:
    """What an image is built on: a context for buildx, with the name and digest that the labels give it.

    `packages` are those of Debian that it is known to have; none for an image that was made elsewhere.
    """

    context: str
    name: str
    digest: str
    packages: tuple[DebianPackage, ...]


def parse(reference: str) -> Base:
    """Return the base that a user names as REF@sha256:…; raises UserError for any other form."""
    found = re.fullmatch(rf"([a-z0-9][a-z0-9.-]*(?::\d+)?(?:/[a-z0-9][\w.-]*)*(?::\w[\w.-]*)?)@({DIGEST})", reference)
    if not found:
        raise UserError(f"--base {reference}: a base is named by its digest, REF@sha256:…, since a tag can move; give that")
    return Base(f"docker-image://{reference}", found[1], found[2], ())


def make(checkout: Checkout) -> Base:
    """Return the base that docker/base.lock says, made when it has not been made yet; raises UserError.

    The same lock makes the same image, to the bit, wherever and whenever.
    """
    packages = read(checkout)
    asked = read_definition(checkout)
    folder = checkout.root / "build" / "base" / files.sha256(f"{_FORMAT} {files.hashed(checkout.root / LOCK)}")[:16]
    layout = folder / "layout"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", "making the base"):
        if not (layout / "index.json").is_file():
            if not shutil.which("mmdebstrap"):
                raise UserError("mmdebstrap is not here, which makes the base; install it, or give --base REF@sha256:…")
            if os.geteuid():
                _refuse_no_namespace(folder)
            status(f"making the base ({len(packages)} packages of Debian {asked.suite})")
            fetch_packages(packages, asked.suite, folder / "packages")
            tree = folder / "layer.tar"
            _debootstrap(packages, asked, folder, tree)
            _settle_devices(tree)
            # No time of its own: BuildKit would give it to every image above.
            write_layout(tree, folder / "partial", name=TAG, created="1980-01-01T00:00:00Z", created_by="mmdebstrap")
            tree.unlink()
            shutil.rmtree(layout, ignore_errors=True)
            (folder / "partial").rename(layout)
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    return Base(f"oci-layout://{layout}:{TAG}@{digest}", f"debian-{asked.suite}", digest, packages)


def _debootstrap(packages: Sequence[DebianPackage], asked: Definition, folder: Path, tree: Path) -> None:
    """Write the file system of the base to `tree` with an archive that has nothing but `packages`.

    Root makes it as root, anyone else in a user namespace; the file is the same.
    """
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name)
        archive.chmod(0o755)  # the namespace's root is somebody else, who may read what anyone may
        index = []
        for package in packages:
            file = Path(package.path).name
            files.write(archive / file, (folder / "packages" / file).read_bytes())
            control = run(["dpkg-deb", "--field", archive / file], deadline=60, environ=os.environ, cwd=archive).stdout
            index.append(f"{control.rstrip()}\nFilename: ./{file}\nSize: {package.size}\nSHA256: {package.sha256}\n")
        listed = "\n".join(index).encode()
        files.write(archive / "Packages", listed)
        # mmdebstrap looks for essential packages in a release of this name only.
        release = f"Codename: {asked.suite}\nSuite: {asked.suite}\nSHA256:\n {files.sha256(listed)} {len(listed)} Packages\n"
        files.write(archive / "Release", release)
        ended = _mmdebstrap(packages, asked, archive, tree)
    if ended.code:
        raise UserError(f"{LOCK}: mmdebstrap cannot make the base: {' '.join(ended.stderr.split()[-60:])}")


def _mmdebstrap(packages: Sequence[DebianPackage], asked: Definition, archive: Path, tree: Path) -> Ended:
    unwanted = " ".join(f'"$1"/{path}' for path in _UNWANTED.split())
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=essential",
        f"--architectures={asked.architecture}",
    ]
    command += [f"--include={','.join(sorted(package.name for package in packages))}", "--format=tar"]
    command += [f"--customize-hook=rm -rf {unwanted}"]
    # No mirror's name gets into the image: a child that wants more of Debian says from where.
    command += ['--customize-hook=mkdir -p "$1"/var/lib/apt/lists/partial "$1"/var/cache/apt/archives/partial "$1"/var/log/apt']
    command += ['--customize-hook=echo "# Name a mirror here." > "$1"/etc/apt/sources.list', asked.suite, str(tree)]
    command += [f"deb [trusted=yes] copy://{archive} ./"]
    # perl, dpkg and apt read the umask, the language and the time zone.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("APT_", "LC_", "DEB"))}
    environ |= {"LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(EPOCH)}
    return run(["sh", "-c", 'umask 022; exec "$@"', "sh", *command], deadline=_MAKING, environ=environ, cwd=archive)


def _refuse_no_namespace(folder: Path) -> None:
    environ = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    ended = run(["mmdebstrap", "--unshare-helper", "true"], deadline=60, environ=environ, cwd=folder)
    if ended.code:
        said = re.findall(r"^[EW]: (?:E: )?(.+)", ended.stderr, re.MULTILINE) or ["it gives no reason"]
        raise UserError(
            f"mmdebstrap, which makes the base, cannot be root in a user namespace ({'; '.join(said)[:200]}); install uidmap, "
            f"and have IDs: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER; or build as root, "
            "or give --base REF@sha256:…"
        )


def _settle_devices(tree: Path) -> None:
    """Write the headers of /dev in the tar file `tree` as POSIX has them.

    They come first, without content, from mmdebstrap itself: up to 1.3 with GNU's magic, later with that of POSIX.
    """
    with tree.open("r+b") as file:
        while (header := bytearray(file.read(512))).startswith(b"./dev/"):
            header[257:265] = b"ustar\x0000"
            header[148:156] = b" " * 8  # as the checksum counts itself
            header[148:156] = b"%06o\0 " % sum(header)
            file.seek(-512, os.SEEK_CUR)
            file.write(header)


def tini(checkout: Checkout, folder: Path) -> bytes:
    """Return the program tini, statically linked, from the package in docker/base.lock; `folder` is for the package.

    A base that was made elsewhere has none. Raises UserError.
    """
    package = next((package for package in read(checkout) if package.name == "tini"), None)
    if package is None:
        raise UserError("docker/base.toml: has no tini, which is PID 1 of every image; include it")
    fetch_packages([package], read_definition(checkout).suite, folder)
    return _member((folder / Path(package.path).name).read_bytes(), "./usr/bin/tini-static", package.name)


def _member(package: bytes, path: str, name: str) -> bytes:
    """Return the file `path` of a Debian package: an ar archive, of a tar archive among others."""
    at = 8
    while at + 60 <= len(package):
        member, size = package[at : at + 16].decode().rstrip(" /"), int(package[at + 48 : at + 58])
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at + 60 : at + 60 + size])) as archive:
                if (file := archive.extractfile(path)) is not None:
                    return file.read()
        at += 60 + size + size % 2
    raise UserError(f"{name}: the package has no {path}; {REMEDY}")
