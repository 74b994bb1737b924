"""The documents of an OCI image, validated (https://github.com/opencontainers/image-spec)."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from smokehouse.errors import UserError, first_of
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

DIGEST = f"sha256:{files.SHA256}"  # a regular expression
Digest = Annotated[str, StringConstraints(pattern=f"^{DIGEST}$")]


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


def encode(content: object) -> bytes:
    """Return `content`, a model or anything that JSON has, as the bytes that its digest is of."""
    given: Any = content
    if isinstance(content, BaseModel):
        given = content.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(given, sort_keys=True, separators=(",", ":")).encode()


def choose_image(index: Index, name: str) -> Descriptor:
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
