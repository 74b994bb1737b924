"""The base image: Debian, built from a list of packages with their hashes, as an image of one layer."""

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smokehouse import oci
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images.debian_lock import LOCK, DebianPackage, Definition, fetch_packages, read, read_definition, remedy
from smokehouse.oci.layout import Image, Layout, write_layout
from smokehouse.oci.reference import Reference
from smokehouse.programs.process import Ended, run
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

TAG = "base"  # of the base in its layout
EPOCH = 315532800  # seconds: 1980, the earliest time that zip files have, so every step can set it
_FORMAT = 2  # raised whenever the same lock builds another base
_TIMEOUT = 1200.0  # seconds

# Written by mmdebstrap or the packages' scripts, and useless in an image or different in every build.
_UNWANTED = (
    "etc/resolv.conf etc/hostname var/cache/apt var/cache/debconf var/cache/ldconfig/aux-cache var/log/apt var/log/dpkg.log "
    "var/log/alternatives.log var/log/bootstrap.log var/lib/apt/lists var/lib/dpkg/status-old var/lib/dpkg/available-old"
)


@dataclass(frozen=True)
class Base:
    """What an image is built on, by the `name` and `digest` in the image's labels.

    A base that was built here is in the OCI layout `layout` under TAG, and consists of the Debian `packages`. Any other is
    in a registry, and its packages are unknown.
    """

    name: str
    digest: str
    packages: tuple[DebianPackage, ...] = ()
    layout: Path | None = None


def parse(reference: str) -> Base:
    """Parse REF@sha256:…, as --base takes it; raises UserError."""
    with suppress(UserError):
        if digest := Reference.parse(reference).digest:
            return Base(reference.removesuffix(f"@{digest}"), digest)
    raise UserError(f"--base: expected REF@sha256:…, found {reference}; specify the digest, because a tag can move")


def make(checkout: Checkout) -> Base:
    """Return the base of docker/base.lock, building it if necessary; raises UserError.

    The same lock builds the same image, bit for bit, on any machine and at any time.
    """
    packages = read(checkout)
    definition = read_definition(checkout)
    folder = checkout.build / "base" / files.sha256(f"{_FORMAT} {files.hashed(checkout.file(LOCK))}")[:16]
    layout = folder / "layout"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", "building the base image"):
        if not _is_whole(layout):
            _require_mmdebstrap(folder)
            status(f"building the base image ({len(packages)} packages of Debian {definition.suite})")
            fetch_packages(packages, definition.suite, folder / "packages")
            tree = folder / "layer.tar"
            _debootstrap(packages, definition, folder, tree)
            _normalize_devices(tree)
            write(tree, folder / "partial")
            tree.unlink()
            shutil.rmtree(layout, ignore_errors=True)
            (folder / "partial").rename(layout)
    return Base(f"debian-{definition.suite}", Layout(layout).image().digest, packages, layout)


def _is_whole(folder: Path) -> bool:
    """Return whether a base is in `folder`, and each blob of it what its digest says."""
    try:
        found = Layout(folder).image()
        for blob in found.blobs:
            found.layout.verify_blob(blob)
    except UserError:
        return False
    return True


def write(tree: Path, folder: Path) -> None:
    """Make `folder` an OCI layout of the base whose file system is the tar file `tree`."""
    # No time of its own: BuildKit would give it to every image above.
    write_layout(tree, folder, name=TAG, created="1980-01-01T00:00:00Z", created_by="mmdebstrap")


def image(checkout: Checkout, base: Base) -> Image:
    """Return the base with its layers, downloaded where it is in a registry; raises UserError."""
    if base.layout:
        return Layout(base.layout).image()
    folder = checkout.build / "bases" / files.sha256(f"{base.name}@{base.digest}")[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", "fetching the base image"):
        layout = Layout(folder / "layout")
        oci.Registry(Reference.parse(f"{base.name}@{base.digest}")).pull(layout)
        return layout.image()


def _debootstrap(packages: Sequence[DebianPackage], definition: Definition, folder: Path, tree: Path) -> None:
    """Write the file system of the base to `tree`, from an archive that has nothing but `packages`.

    It runs as root, or in a user namespace for any other user; the file is the same.
    """
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name)
        archive.chmod(0o755)  # root of the namespace is another user, who can read only what is readable for all
        index = []
        for package in packages:
            file = Path(package.path).name
            files.write(archive / file, (folder / "packages" / file).read_bytes())
            control = run(["dpkg-deb", "--field", archive / file], deadline=60, environ=os.environ, cwd=archive)
            if control.code:
                reason = " ".join(control.stderr.split()) or f"exit code {control.code}"
                raise UserError(f"{file}: dpkg-deb cannot read it: {reason}; try again")
            index.append(f"{control.stdout.rstrip()}\nFilename: ./{file}\nSize: {package.size}\nSHA256: {package.sha256}\n")
        listed = "\n".join(index).encode()
        files.write(archive / "Packages", listed)
        # mmdebstrap looks for essential packages only in a release with the codename of the suite.
        release = (
            f"Codename: {definition.suite}\nSuite: {definition.suite}\n"
            f"SHA256:\n {files.sha256(listed)} {len(listed)} Packages\n"
        )
        files.write(archive / "Release", release)
        ended = _mmdebstrap(packages, definition, archive, tree)
    if ended.code:
        raise UserError(f"{LOCK}: mmdebstrap cannot build the base image: {' '.join(ended.stderr.split()[-60:])}")


def _mmdebstrap(packages: Sequence[DebianPackage], definition: Definition, archive: Path, tree: Path) -> Ended:
    unwanted = " ".join(f'"$1"/{path}' for path in _UNWANTED.split())
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=essential",
        f"--architectures={definition.architecture}",
    ]
    command += [f"--include={','.join(sorted(package.name for package in packages))}", "--format=tar"]
    command += [f"--customize-hook=rm -rf {unwanted}"]
    # The image has no mirror: a child image that installs more of Debian specifies its own.
    command += ['--customize-hook=mkdir -p "$1"/var/lib/apt/lists/partial "$1"/var/cache/apt/archives/partial "$1"/var/log/apt']
    command += ['--customize-hook=echo "# Name a mirror here." > "$1"/etc/apt/sources.list', definition.suite, str(tree)]
    command += [f"deb [trusted=yes] copy://{archive} ./"]
    # perl, dpkg and apt depend on the umask, the language and the time zone.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("APT_", "LC_", "DEB"))}
    environ |= {"LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(EPOCH)}
    return run(["sh", "-c", 'umask 022; exec "$@"', "sh", *command], deadline=_TIMEOUT, environ=environ, cwd=archive)


def _require_mmdebstrap(folder: Path) -> None:
    """Raise UserError where mmdebstrap is not installed or, without root, cannot create a user namespace."""
    if not shutil.which("mmdebstrap"):
        raise UserError("mmdebstrap not found; it builds the base image: install it, or pass --base REF@sha256:…")
    if os.geteuid() == 0:
        return
    environ = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    ended = run(["mmdebstrap", "--unshare-helper", "true"], deadline=60, environ=environ, cwd=folder)
    if ended.code:
        reasons = re.findall(r"^[EW]: (?:E: )?(.+)", ended.stderr, re.MULTILINE) or ["no reason given"]
        raise UserError(
            "mmdebstrap: requires a user namespace to build the base image without root, cannot create one "
            f"({'; '.join(reasons)[:200]}); install uidmap and allocate IDs: "
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER; "
            "or build as root, or pass --base REF@sha256:…"
        )


def _normalize_devices(tree: Path) -> None:
    """Rewrite the headers of /dev in the tar file `tree` in the format of POSIX.

    mmdebstrap itself writes them, first and without content: with GNU's magic up to its release 1.3, with that of POSIX later.
    """
    with tree.open("r+b") as file:
        while (header := bytearray(file.read(512))).startswith(b"./dev/"):
            header[257:265] = b"ustar\x0000"
            header[148:156] = b" " * 8  # the checksum is computed as if it were spaces
            header[148:156] = b"%06o\0 " % sum(header)
            file.seek(-512, os.SEEK_CUR)
            file.write(header)


def tini(checkout: Checkout, folder: Path) -> bytes:
    """Return the statically linked program tini from its package in docker/base.lock, downloaded to `folder`.

    A base from a registry has none. Raises UserError.
    """
    package = next((package for package in read(checkout) if package.name == "tini"), None)
    if package is None:
        raise UserError("docker/base.toml: tini not found; it is PID 1 of every image: add it to [include]")
    fetch_packages([package], read_definition(checkout).suite, folder)
    return _member((folder / Path(package.path).name).read_bytes(), "./usr/bin/tini-static", package.name)


def _member(package: bytes, path: str, name: str) -> bytes:
    """Return the file `path` of a Debian package, an ar archive that contains a tar archive of its files."""
    at = 8
    while at + 60 <= len(package):
        member, size = package[at : at + 16].decode().rstrip(" /"), int(package[at + 48 : at + 58])
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at + 60 : at + 60 + size])) as archive:
                if (file := archive.extractfile(path)) is not None:
                    return file.read()
        at += 60 + size + size % 2
    raise UserError(f"{name}: {path} not found in the package; {remedy()}")
