"""OCI image layouts: folders with images whose blobs are stored by digest.

See: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import gzip
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.oci import closed
from smokehouse.oci.model import (
    CONFIG,
    INDEXES,
    MANIFEST,
    MAX_DOCUMENT,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose_image,
    encode,
    parse,
)
from smokehouse.storage import files

_CHUNK = 1 << 20
# In the folder of a layout; BuildKit leaves an empty folder `ingest`.
_PARTS = ("blobs", "index.json", "oci-layout")
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Layout:
    """A folder of images whose blobs are stored by digest."""

    folder: Path

    def blob(self, digest: str) -> Path:
        """Return the path of a blob, whether it exists or not."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def put(self, data: bytes, media_type: str) -> Descriptor:
        """Write a blob and return its descriptor."""
        described = Descriptor.of(data, media_type)
        place = self.blob(described.digest)
        if not place.is_file() or f"sha256:{files.hashed(place)}" != described.digest:
            files.write(place, data)
        return described

    def read(self, blob: Descriptor) -> bytes:
        """Return a small blob after verifying its digest; raises UserError."""
        place = self.blob(blob.digest)
        if blob.size > MAX_DOCUMENT:
            raise UserError(f"{place}: expected at most {MAX_DOCUMENT} bytes, found {blob.size}; do not trust this image")
        self._require_blob(place, blob)
        with place.open("rb") as file:
            data = file.read(blob.size + 1)
        if len(data) != blob.size or f"sha256:{files.sha256(data)}" != blob.digest:  # of what is returned, and no later read
            raise _unlike(place)
        return data

    def verify_blob(self, blob: Descriptor) -> None:
        """Raise UserError where a blob is missing or does not match its digest."""
        place = self.blob(blob.digest)
        self._require_blob(place, blob)
        if place.stat().st_size != blob.size or files.hashed(place) != blob.digest.removeprefix("sha256:"):
            raise _unlike(place)

    def _require_blob(self, place: Path, blob: Descriptor) -> None:
        if not place.is_file():
            raise UserError(f"{self.folder}: blob {blob.digest} not found; build or fetch the layout again")

    def write_index(self, manifest: Descriptor, name: str = "") -> None:
        """Make `manifest`, which engines are to call `name`, the only image of the layout."""
        files.write(self.folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}')
        if name:
            # The first is for containerd, which takes nothing but a full reference, the second for all other programs.
            full = {"io.containerd.image.name": f"docker.io/library/{name}", "org.opencontainers.image.ref.name": name}
            manifest = manifest.model_copy(update={"annotations": full, "platform": Platform(architecture="amd64", os="linux")})
        index = Index(schema_version=2, manifests=(manifest,))
        files.write(self.folder / "index.json", encode(index).decode())

    def archive(self) -> Iterator[bytes]:
        """Yield the parts of a tar file of the layout, none of them empty; raises OSError."""
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(str(path.relative_to(self.folder)))
            member.size = path.stat().st_size
            yield member.tobuf(tarfile.PAX_FORMAT)
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            if padding := -member.size % tarfile.BLOCKSIZE:
                yield bytes(padding)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def image(self) -> "Image":
        """Return the only linux/amd64 image of the layout; raises UserError."""
        return self._choose(choose_image)

    def only_image(self) -> "Image":
        """Return the image of a layout that has nothing else, so that all programs choose this one; raises UserError.

        Its descriptor has the annotations of all indexes, the outermost first: engines take the image's name from there.
        """
        image = self._choose(closed.check_index)
        # Some programs take the image that a manifest.json lists, and not that of the index.
        if other := sorted(path.name for path in self.folder.iterdir() if path.name not in _PARTS and not _is_empty(path)):
            listed = ", ".join(closed.show(name)[1:-1] for name in other)
            parts = ", ".join(_PARTS)
            raise UserError(f"{self.folder}: expected {parts} alone, found {listed}; remove it, or do not trust this image")
        version = closed.read(self._document("oci-layout"), str(self.folder / "oci-layout"))
        for path, problem in closed.differences(version, {"imageLayoutVersion": "1.0.0"}):
            raise UserError(f"{self.folder / 'oci-layout'}: {path}: {problem}; do not trust this image")
        return image

    def _document(self, name: str) -> bytes:
        """Return what is in the file `name`, read once and within bounds; raises UserError."""
        place = self.folder / name
        try:
            with files.open_regular(place) as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            raise UserError(f"{self.folder}: not an OCI layout, {name} not found; specify a folder that has one") from None
        except OSError as broken:
            raise UserError(f"{place}: cannot be read ({broken.strerror}); specify a folder that has an OCI layout") from None
        if len(data) > MAX_DOCUMENT:
            raise UserError(f"{place}: expected at most {MAX_DOCUMENT} bytes, found more; do not trust this image")
        return data

    def _choose(self, choose: Callable[[bytes, str], Descriptor]) -> "Image":
        """Return the image that `choose` finds in the index of the layout, or in an index that it lists."""
        data, name, names = self._document("index.json"), str(self.folder / "index.json"), dict[str, str]()
        for _ in range(2):  # docker save writes an index that lists an index
            chosen = choose(data, name)
            names = {**(chosen.annotations or {}), **names}
            if chosen.media_type not in INDEXES:
                return self.open(chosen.model_copy(update={"annotations": names or None}))
            data, name = self.read(chosen), chosen.digest
        raise UserError(f"{self.folder}: expected at most two nested indexes, found more; specify a layout with one image")

    def open(self, chosen: Descriptor) -> "Image":
        """Return the image whose manifest is `chosen`; raises UserError."""
        manifest = parse(Manifest, self.read(chosen), chosen.digest)
        config = parse(Config, self.read(manifest.config), manifest.config.digest)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise UserError(
                f"{chosen.digest}: expected {len(manifest.layers)} layers in its config, as in its manifest, found "
                f"{len(config.rootfs.diff_ids)}; do not trust this image"
            )
        return Image(self, chosen, manifest, config)


@dataclass(frozen=True)
class Image:
    """An image in a layout."""

    layout: Layout
    descriptor: Descriptor
    manifest: Manifest
    config: Config

    @property
    def digest(self) -> str:
        """The digest of its manifest, which identifies it."""
        return self.descriptor.digest

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return self.config.config.labels or {}

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob that its manifest lists."""
        return (self.manifest.config, *self.manifest.layers)


def write_layout(layer: Path, folder: Path, *, name: str, created: str, created_by: str) -> None:
    """Make `folder` an OCI layout of one linux/amd64 image, called `name`, of one layer, the tar file `layer`.

    The same layer gives the same bytes. `created` and `created_by` go to the history only: the image has no time of its
    own, which BuildKit would give to every image above it. An earlier folder is replaced. Raises OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    layout = Layout(folder)
    folder.mkdir(parents=True)
    compressed = folder / "layer"
    with layer.open("rb") as source, compressed.open("wb") as target, gzip.GzipFile("", "wb", 1, target, mtime=0) as zipped:
        shutil.copyfileobj(source, zipped, _CHUNK)
    blob = Descriptor(media_type=_LAYER, digest=f"sha256:{files.hashed(compressed)}", size=compressed.stat().st_size)
    layout.blob(blob.digest).parent.mkdir(parents=True)
    compressed.rename(layout.blob(blob.digest))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{files.hashed(layer)}"]},
        "history": [{"created": created, "created_by": created_by}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _entry(layout.put(_spaced(config), CONFIG)),
        "layers": [_entry(blob)],
    }
    entry = _entry(layout.put(_spaced(manifest), MANIFEST))
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    files.write(folder / "oci-layout", '{"imageLayoutVersion": "1.0.0"}')
    files.write(folder / "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _unlike(place: Path) -> UserError:
    return UserError(f"{place}: does not match its digest; build or fetch the layout again")


def _is_empty(path: Path) -> bool:
    return path.name == "ingest" and path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _entry(blob: Descriptor) -> dict[str, object]:
    return blob.model_dump(by_alias=True, exclude_none=True)


def _spaced(content: object) -> bytes:
    """Return `content` as JSON with spaces, unlike `encode`: digests of published base images depend on it."""
    return json.dumps(content, sort_keys=True).encode()


def unpack_layout(archive: Path, folder: Path) -> Layout:
    """Unpack the tar file `archive`, as docker save writes it, to `folder` and return its layout; raises UserError."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or not re.fullmatch(rf"index\.json|oci-layout|blobs/sha256/{files.SHA256}", path):
                    continue
                place = folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with source, place.open("wb") as out:
                    shutil.copyfileobj(source, out, _CHUNK)
    except tarfile.TarError as broken:
        raise UserError(f"{archive.name}: expected a tar file from the engine, found {broken}; save the image again") from None
    if not os.path.lexists(folder / "index.json"):
        raise UserError(f"{archive.name}: no OCI layout in the output of docker save; use Docker Engine 25 or later")
    return Layout(folder)
