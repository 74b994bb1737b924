"""Attach statements and SBOMs to an image in a registry, and fetch its statements.

They are artifacts that refer to the image's manifest.

See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from smokehouse.errors import UserError
from smokehouse.oci.layout import Layout
from smokehouse.oci.model import EMPTY, MANIFEST, MAX_DOCUMENT, Descriptor, Manifest, encode, parse
from smokehouse.oci.registry import Registry
from smokehouse.proofs.attestation import ENVELOPE, SIGSTORE_BUNDLE, SignedStatement
from smokehouse.storage import files

SBOM = "application/spdx+json"


def attach_sbom(registry: Registry, layout: Layout, image: Descriptor, sbom: bytes) -> None:
    """Attach an SBOM to `image`; `layout` keeps what is uploaded. Raises UserError."""
    _attach(registry, layout, image, SBOM, [layout.put(sbom, SBOM)])


def attach_statement(registry: Registry, layout: Layout, image: Descriptor, signed: SignedStatement) -> None:
    """Attach a signed statement to `image`; `layout` keeps what is uploaded. Raises UserError."""
    blobs = [layout.put(signed.envelope, ENVELOPE)]
    if signed.sigstore_bundle:
        blobs.append(layout.put(signed.sigstore_bundle, SIGSTORE_BUNDLE))
    _attach(registry, layout, image, ENVELOPE, blobs)


def fetch_statements(registry: Registry, digest: str, folder: Path) -> list[SignedStatement]:
    """Fetch the signed statements of the image `digest`, oldest first; temporary files go to `folder`. Raises UserError."""
    statements = []
    for entry in registry.referrers(digest):
        if entry.artifact_type != ENVELOPE or not (found := registry.manifest(entry.digest)):
            continue
        manifest = parse(Manifest, found[0], entry.digest)
        blobs = {layer.media_type: layer for layer in manifest.layers}
        if ENVELOPE not in blobs or any(blob.size > MAX_DOCUMENT for blob in blobs.values()):
            limit = f"{MAX_DOCUMENT >> 20} MiB"
            raise UserError(f"{entry.digest}: expected a DSSE envelope of at most {limit}, found none; do not trust it")
        with TemporaryDirectory(dir=folder) as temporary:
            layout = Layout(Path(temporary))
            registry.fetch(tuple(blobs.values()), layout)
            bundle = layout.read(blobs[SIGSTORE_BUNDLE]) if SIGSTORE_BUNDLE in blobs else None
            statements.append(SignedStatement(layout.read(blobs[ENVELOPE]), bundle))
    return statements


def _attach(registry: Registry, layout: Layout, image: Descriptor, kind: str, blobs: Sequence[Descriptor]) -> None:
    empty = layout.put(b"{}", EMPTY)
    for blob in (empty, *blobs):
        registry.upload(layout.blob(blob.digest), blob)
    subject = image.model_copy(update={"annotations": None, "platform": None})
    manifest = Manifest(schema_version=2, artifact_type=kind, config=empty, layers=tuple(blobs), subject=subject)
    data = encode(manifest)
    artifact = Descriptor(media_type=MANIFEST, digest=f"sha256:{files.sha256(data)}", size=len(data), artifact_type=kind)
    if not registry.put(data, MANIFEST):
        registry.add_referrer(artifact, image.digest)
