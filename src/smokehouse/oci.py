"""OCI images: references to them, and layouts, the folders that they lie in (https://github.com/opencontainers/image-spec)."""

import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.errors import UserError, first_of
from smokehouse.layers import Keep, Tree
from smokehouse.storage import files

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = (INDEX, DOCKER_INDEX)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)

DOCUMENT = 4 << 20  # bytes of a manifest, index or config, as registries have it
_LAYERS = 500
_BLOB = 64 << 30

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Platform(_Model):
    """What a manifest of an index is for."""

    architecture: str = ""
    os: str = ""


class Descriptor(_Model):
    """What a blob is: its type, digest and size in bytes."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0, le=_BLOB)
    annotations: dict[str, str] | None = None
    artifact_type: str | None = Field(default=None, alias="artifactType")
    platform: Platform | None = None

    @property
    def short(self) -> str:
        """The digest as messages name it."""
        return self.digest[:19]


class Manifest(_Model):
    """An image, or an artefact that has a `subject`."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=MANIFEST, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: tuple[Descriptor, ...] = Field(max_length=_LAYERS)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(_Model):
    """A list of manifests."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=INDEX, alias="mediaType")
    manifests: tuple[Descriptor, ...] = Field(max_length=10_000)


class Runtime(_Model):
    """How a container is started, as far as an image says."""

    labels: dict[str, str] | None = Field(default=None, alias="Labels")
    env: tuple[str, ...] | None = Field(default=None, alias="Env")
    entrypoint: tuple[str, ...] | None = Field(default=None, alias="Entrypoint")
    cmd: tuple[str, ...] | None = Field(default=None, alias="Cmd")
    user: str = Field(default="", alias="User")


class _RootFs(_Model):
    diff_ids: tuple[Digest, ...] = ()


class Config(_Model):
    """What a runtime reads of an image."""

    architecture: str
    os: str
    config: Runtime = Runtime()
    rootfs: _RootFs


_Document = TypeVar("_Document", bound=BaseModel)


def parse(document: type[_Document], data: bytes, name: str) -> _Document:
    """Return `data` as a `document`; raises UserError naming it `name`."""
    try:
        return document.model_validate_json(data)
    except ValidationError as invalid:
        raise UserError(f"{name}: {first_of(invalid, 'the document')}; it is no OCI image, or a damaged one") from None


def document(content: object) -> bytes:
    """Return `content`, a model or anything that JSON has, as the bytes that its digest is of."""
    given: Any = content
    if isinstance(content, BaseModel):
        given = content.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(given, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Reference:
    """Where an image lies in a registry: `tag` or `digest` is given, or both."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def read(cls, text: str) -> "Reference":
        """Return the reference that `text` is; raises UserError."""
        part, tag = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
        # Docker's rule: what has neither a dot nor a port is no host.
        host = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|(?:[A-Za-z0-9-]+|\[[0-9a-fA-F:]+\])(?=:))(?::\d{1,5})?"
        found = re.fullmatch(rf"(?:({host})/)?({part}(?:/{part})*)(?::({tag}))?(?:@(sha256:[0-9a-f]{{64}}))?", text)
        if not found:
            raise UserError(f"{text}: no image; give oci:DIR, docker:NAME, or a registry's HOST/NAME:TAG or HOST/NAME@sha256:…")
        where, name, label, digest = found.groups(default="")
        if not where:
            where, name = "docker.io", name if "/" in name else f"library/{name}"
        return cls(where, name, label, digest)

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        """Return the reference as it is written."""
        return f"{self.name}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True)
class Layout:
    """A folder with images in it, whose blobs go by their digest."""

    folder: Path

    def blob(self, digest: str) -> Path:
        """Return where a blob lies, or will."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def put(self, data: bytes, media_type: str) -> Descriptor:
        """Write a blob and return what it is."""
        digest = files.sha256(data)
        place = self.blob(digest)
        if not place.is_file() or files.hashed(place) != digest:
            files.write(place, data)
        return Descriptor(media_type=media_type, digest=f"sha256:{digest}", size=len(data))

    def read(self, blob: Descriptor) -> bytes:
        """Return a small blob, seen to have its digest; raises UserError."""
        place = self.blob(blob.digest)
        if blob.size > DOCUMENT:
            raise UserError(f"{place}: {blob.size} bytes, more than a document of an image may have; do not trust it")
        self.refuse_damaged(blob)
        return place.read_bytes()

    def refuse_damaged(self, blob: Descriptor) -> None:
        """Raise UserError where a blob is not there or not as its digest says."""
        place = self.blob(blob.digest)
        if not place.is_file():
            raise UserError(f"{self.folder}: the blob {blob.digest} is not there; make or fetch the layout again")
        if place.stat().st_size != blob.size or files.hashed(place) != blob.digest.removeprefix("sha256:"):
            raise UserError(f"{place}: not what its digest says; make or fetch the layout again")

    def name(self, manifest: Descriptor) -> None:
        """Make `manifest` the one image of the layout."""
        files.write(self.folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}')
        index = Index(schema_version=2, manifests=(manifest,))
        files.write(self.folder / "index.json", document(index).decode())

    def image(self) -> "Image":
        """Return the one image for linux/amd64 in the layout; raises UserError."""
        place = self.folder / "index.json"
        try:
            if place.stat().st_size > DOCUMENT:
                raise UserError(f"{place}: larger than an index may be; do not trust it")
            index = parse(Index, place.read_bytes(), str(place))
        except FileNotFoundError:
            raise UserError(f"{self.folder}: no OCI layout, there is no index.json; name a folder that has one") from None
        except OSError as broken:
            raise UserError(f"{place}: cannot be read ({broken.strerror}); name a folder that can") from None
        for _ in range(2):  # an index, or an index of one
            chosen = choose(index, str(self.folder))
            if chosen.media_type not in INDEXES:
                return self.open(chosen)
            index = parse(Index, self.read(chosen), chosen.digest)
        raise UserError(f"{self.folder}: an index in an index in an index; name a layout with one image")

    def open(self, chosen: Descriptor) -> "Image":
        """Return the image whose manifest is `chosen`; raises UserError."""
        manifest = parse(Manifest, self.read(chosen), chosen.digest)
        config = parse(Config, self.read(manifest.config), manifest.config.digest)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise UserError(f"{chosen.digest}: its config names another number of layers than its manifest; do not trust it")
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
        """The digest of its manifest, by which it is known."""
        return self.descriptor.digest

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return self.config.config.labels or {}

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All that its manifest names."""
        return (self.manifest.config, *self.manifest.layers)

    def tree(self, keep: Keep, tree: Tree | None = None, *, first: int = 0, last: int | None = None) -> Tree:
        """Return the file system of the image, each layer seen to have both its digests; `keep` is as for `Tree.apply`.

        With `first` and `last`, only these layers are put on top of `tree`. Raises UserError.
        """
        tree = tree or Tree()
        layers = [*enumerate(zip(self.manifest.layers, self.config.rootfs.diff_ids, strict=True))]
        for number, (layer, unpacked) in layers[first:last]:
            self.layout.refuse_damaged(layer)
            name = f"layer {number + 1} ({layer.short})"
            if tree.apply(self.layout.blob(layer.digest), layer.media_type, name, number, keep) != unpacked:
                raise UserError(f"{name}: unpacks to something else than the image's config says; do not trust this image")
        return tree


def choose(index: Index, name: str) -> Descriptor:
    """Return the one image for linux/amd64 in `index`; raises UserError naming it `name`."""
    fitting = [
        entry
        for entry in index.manifests
        if entry.media_type in (*MANIFESTS, *INDEXES)
        and (entry.platform is None or (entry.platform.os, entry.platform.architecture) == ("linux", "amd64"))
    ]
    unique = {entry.digest: entry for entry in fitting}
    if len(unique) != 1:
        what = ", ".join(unique) or "none"
        raise UserError(f"{name}: wants to have one image for linux/amd64, has {what}; name one of them by its digest")
    return next(iter(unique.values()))


def unpack_layout(archive: Path, folder: Path) -> Layout:
    """Return the layout that lies in the tar file `archive`, as docker save writes it, in `folder`; raises UserError."""
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if not re.fullmatch(r"index\.json|oci-layout|blobs/sha256/[0-9a-f]{64}", path) or not member.isreg():
                continue
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source
            with source, place.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    if not os.path.lexists(folder / "index.json"):
        raise UserError(f"{archive.name}: this Docker saves no OCI layout; use Docker Engine 25 or later")
    return Layout(folder)
