"""Small OCI layouts written by hand, so that they can be invalid in any way."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from smokehouse.oci import Descriptor, Image, Layout
from smokehouse.oci.blobs import unpacked_digest
from smokehouse.oci.filesystem import Entry, Limits, entries
from smokehouse.oci.model import CONFIG, MANIFEST, encode


@dataclass(frozen=True)
class Member:
    """A member of a layer: a file, a link, or any other `type` of tar."""

    content: bytes = b""
    mode: int = 0o644
    type: bytes = tarfile.REGTYPE
    target: str = ""
    headers: Mapping[str, str] | None = None


def link(target: str) -> Member:
    """Return a symbolic link."""
    return Member(type=tarfile.SYMTYPE, target=target)


FOLDER = Member(type=tarfile.DIRTYPE, mode=0o755)

Contents = Mapping[str, Member | bytes] | Sequence[tuple[str, Member | bytes]]


def tar(contents: Contents) -> bytes:
    """Return the bytes of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, value in contents.items() if isinstance(contents, Mapping) else contents:
            member = Member(value) if isinstance(value, bytes) else value
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.linkname = member.type, member.mode, member.target
            info.size = len(member.content)
            info.pax_headers = dict(member.headers or {})
            archive.addfile(info, io.BytesIO(member.content))
    return buffer.getvalue()


def packed(data: bytes, kind: str) -> bytes:
    """Return `data` compressed as `kind`, "gzip", "zstd" or ""."""
    if kind == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.compress(data) if kind == "zstd" else data


def image(
    folder: Path,
    layers: Sequence[Contents | bytes],
    *,
    labels: Mapping[str, str] | None = None,
    kind: str = "zstd",
    diff_ids: Sequence[str] | None = None,
) -> Descriptor:
    """Write a layout with one image of `layers`, each given by contents or as the bytes of a tar file, to `folder`."""
    layout = Layout(folder)
    streams = [layer if isinstance(layer, bytes) else tar(layer) for layer in layers]
    suffix = {"gzip": "+gzip", "zstd": "+zstd"}.get(kind, "")
    blobs = [layout.put(packed(stream, kind), f"application/vnd.oci.image.layer.v1.tar{suffix}") for stream in streams]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": dict(labels or {})},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or [digest(stream) for stream in streams])},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.put(json.dumps(config).encode(), CONFIG).model_dump(by_alias=True, exclude_none=True),
        "layers": [blob.model_dump(by_alias=True, exclude_none=True) for blob in blobs],
    }
    made = layout.put(encode(manifest), MANIFEST)
    layout.write_index(made)
    return made


def tree(found: Image) -> dict[str, Entry]:
    """Return the entries of all layers of an image, each of which has both digests."""
    made: dict[str, Entry] = {}
    for layer, diff_id in zip(found.manifest.layers, found.config.rootfs.diff_ids, strict=True):
        found.layout.verify_blob(layer)
        place = found.layout.blob(layer.digest)
        assert unpacked_digest(place, layer.media_type, 1 << 30, "layer")[0] == diff_id
        made |= entries(place, layer.media_type, "layer", Limits())
    return made


def digest(data: bytes) -> str:
    """Return the digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
