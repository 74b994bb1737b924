"""The documents of an OCI image, validated.

See: https://github.com/opencontainers/image-spec
"""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smokehouse.errors import UserError, first_of
from smokehouse.storage import files, strict_json

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = (INDEX, DOCKER_INDEX)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)

MAX_DOCUMENT = 4 << 20  # bytes of a manifest, index or config; registries accept no larger ones
_MAX_LAYERS = 500
_MAX_BLOB = 64 << 30  # bytes

DIGEST = f"sha256:{files.SHA256}"  # a regular expression
Digest = Annotated[str, StringConstraints(pattern=f"^{DIGEST}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Platform(_Model):
    """The platform that a manifest of an index is for."""

    architecture: str = ""
    os: str = ""


class Descriptor(_Model):
    """A reference to a blob: its media type, digest and size in bytes."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0, le=_MAX_BLOB)
    annotations: dict[str, str] | None = None
    artifact_type: str | None = Field(default=None, alias="artifactType")
    platform: Platform | None = None

    @classmethod
    def of(cls, data: bytes, media_type: str, **more: Any) -> "Descriptor":
        """Return the descriptor of `data`, with `more` of its members."""
        return cls(media_type=media_type, digest=f"sha256:{files.sha256(data)}", size=len(data), **more)

    @property
    def short(self) -> str:
        """The digest, abbreviated for messages."""
        return self.digest[:19]


class Manifest(_Model):
    """An image, or an artifact that refers to the image `subject`."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=MANIFEST, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: tuple[Descriptor, ...] = Field(max_length=_MAX_LAYERS)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(_Model):
    """A list of manifests."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=INDEX, alias="mediaType")
    manifests: tuple[Descriptor, ...] = Field(max_length=10_000)


class Runtime(_Model):
    """The defaults that an image sets for its containers, as far as they are read here."""

    labels: dict[str, str] | None = Field(default=None, alias="Labels")


class _RootFs(_Model):
    diff_ids: tuple[Digest, ...] = ()


class Config(_Model):
    """The configuration of an image, as far as it is read here."""

    architecture: str
    os: str
    config: Runtime = Runtime()
    rootfs: _RootFs


_Document = TypeVar("_Document", bound=BaseModel)


def parse(document: type[_Document], data: bytes, name: str) -> _Document:
    """Return `data` as a `document`; raises UserError, calling it `name`."""
    try:
        return document.model_validate(strict_json.parse(data), by_alias=True, by_name=False)
    except ValueError as invalid:
        raise UserError(
            f"{name}: invalid OCI document ({first_of(invalid, 'document')}); specify an OCI image, or build it again"
        ) from None


def encode(content: object) -> bytes:
    """Return `content`, a model or a JSON value, as canonical JSON: the bytes that its digest is computed from."""
    value = content.model_dump(by_alias=True, exclude_none=True) if isinstance(content, BaseModel) else content
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def choose_image(data: bytes, name: str) -> Descriptor:
    """Return the only linux/amd64 image in an index, or index in it; raises UserError, calling the index `name`."""
    fitting = [
        entry
        for entry in parse(Index, data, name).manifests
        if entry.media_type in (*MANIFESTS, *INDEXES)
        and (entry.platform is None or (entry.platform.os, entry.platform.architecture) == ("linux", "amd64"))
    ]
    unique = {entry.digest: entry for entry in fitting}
    if len(unique) != 1:
        found = ", ".join(unique) or "none"
        raise UserError(f"{name}: expected one linux/amd64 image, found {found}; specify one by its digest")
    return next(iter(unique.values()))
