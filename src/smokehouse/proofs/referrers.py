"""Attach statements and SBOMs to an image in a registry, and fetch its statements.

They are artifacts that refer to the image's manifest.

See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from smokehouse.errors import UserError
from smokehouse.oci.layout import Layout
from smokehouse.oci.model import EMPTY, MANIFEST, MAX_DOCUMENT, Descriptor, Manifest, encode, parse
from smokehouse.oci.registry import Registry
from smokehouse.proofs.attestation import TEST_RESULT
from smokehouse.proofs.signing import BUNDLE, SignedStatement

SBOM = "application/spdx+json"
_MOST = 1000  # statements of an image; whoever may push can attach any number, and each is fetched and verified
_MOST_BYTES = 256 << 20  # of all statements of an image, which are in memory together
_CONTENT = "dev.sigstore.bundle.content"
_PREDICATE_TYPE = "dev.sigstore.bundle.predicateType"


def attach_statement(registry: Registry, layout: Layout, image: Descriptor, signed: SignedStatement) -> None:
    """Attach a signed statement to `image` as cosign does; `layout` keeps what is uploaded. Raises UserError.

    See: https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md
    """
    annotations = {_CONTENT: "dsse-envelope", _PREDICATE_TYPE: signed.predicate_type}
    attach(registry, layout, image, BUNDLE, signed.bundle, annotations)


def fetch_statements(registry: Registry, digest: str, folder: Path) -> list[SignedStatement]:
    """Fetch the signed test results of the image `digest`; raises UserError.

    Other statements are told by annotations, which nobody has signed; temporary files go to `folder`.
    """
    statements, total = [], 0
    listed = {entry.digest: entry for entry in registry.referrers(digest) if entry.artifact_type == BUNDLE}
    if len(listed) > _MOST:
        raise UserError(f"{digest}: expected at most {_MOST} statements, found {len(listed)}; verify another copy of the image")
    for entry in listed.values():
        if not (found := registry.manifest(entry.digest)):
            continue
        manifest = parse(Manifest, found[0], entry.digest)
        kind = (manifest.annotations or {}).get(_PREDICATE_TYPE, TEST_RESULT)
        if kind != TEST_RESULT:
            continue
        bundles = [layer for layer in manifest.layers if layer.media_type == BUNDLE]
        if len(bundles) != 1 or bundles[0].size > MAX_DOCUMENT:
            limit = f"{MAX_DOCUMENT >> 20} MiB"
            raise UserError(f"{entry.digest}: expected one Sigstore bundle of at most {limit}, found none; do not trust it")
        with TemporaryDirectory(dir=folder) as temporary:
            layout = Layout(Path(temporary))
            registry.fetch(tuple(bundles), layout)
            statements.append(SignedStatement(layout.read(bundles[0]), kind))
        if (total := total + bundles[0].size) > _MOST_BYTES:
            limit = f"{_MOST_BYTES >> 20} MiB"
            raise UserError(f"{digest}: expected at most {limit} of statements, found more; verify another copy of the image")
    return statements


def attach(
    registry: Registry, layout: Layout, image: Descriptor, kind: str, data: bytes, annotations: dict[str, str] | None = None
) -> None:
    """Attach `data` of the media type `kind` to `image`; `layout` keeps what is uploaded. Raises UserError."""
    empty, blob = layout.put(b"{}", EMPTY), layout.put(data, kind)
    for part in (empty, blob):
        registry.upload(layout.blob(part.digest), part)
    subject = image.model_copy(update={"annotations": None, "platform": None})
    manifest = Manifest(
        schema_version=2, artifact_type=kind, config=empty, layers=(blob,), subject=subject, annotations=annotations
    )
    text = encode(manifest)
    if not registry.put(text, MANIFEST):
        registry.add_referrer(Descriptor.of(text, MANIFEST, artifact_type=kind, annotations=annotations), image.digest)
