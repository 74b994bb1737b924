"""Publish an image in a registry.

It is built, proven by its smoke test, verified and signed; then all of it is sent, and the tags last. What an interrupted
call made or sent is used by the next.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError
from smokehouse.images import build as building
from smokehouse.images import record
from smokehouse.images.build import ImageRequest
from smokehouse.images.contexts import CYCLONEDX
from smokehouse.images.labels import ImageLabels
from smokehouse.images.spec import tags as image_tags
from smokehouse.locks import LockedEnvironment
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.proofs import attestation, provenance, signing
from smokehouse.proofs.compare import Verification
from smokehouse.proofs.referrers import SBOM, attach, attach_statement
from smokehouse.proofs.signing import SignedStatement, Signer
from smokehouse.proofs.verify import VerifyOptions, verify_image
from smokehouse.runs import report as reports
from smokehouse.runs.complete import MAX_AGE, require_complete
from smokehouse.runs.container import prove
from smokehouse.runs.report import Report
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive


@dataclass(frozen=True)
class PublishOptions:
    """How to publish: the image that `request` describes, signed with the private `key`, None for keyless.

    `built` is an OCI layout that has the image, and `report` its report, where they were made before. `move` overwrites
    existing tags. `recorded` writes the image to lockfiles/NAME/image.json, or compares it with that.
    """

    request: ImageRequest
    key: Path | None = None
    built: Path | None = None
    report: Path | None = None
    move: bool = False
    recorded: bool = False


@dataclass(frozen=True)
class Publication:
    """The result of publishing: the references with tags, none where the image did not pass the `verification`.

    `report` is the summary of the smoke test that proved it.
    """

    references: tuple[str, ...]
    verification: Verification
    report: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what `publish --json` prints."""
        image = self.verification
        return {
            "environment": image.environment,
            "references": list(self.references),
            "digest": image.digest,
            "id": image.id,
            "lock": image.lock,
            "report": self.report,
        }


@dataclass(frozen=True)
class _Job:
    """What is published where: `names` are the image's, each NAME:TAG, and `folder` keeps what was made of it."""

    checkout: Checkout
    locked: LockedEnvironment
    repository: Reference
    names: list[str]
    folder: Path
    options: PublishOptions

    @property
    def tags(self) -> list[str]:
        """The image's tags: by stack and lock, then by date and lock."""
        return [name.partition(":")[2] for name in self.names]

    @property
    def layout(self) -> Layout:
        """The layout of an image that was built here, until it is published."""
        return Layout(self.folder / "layout")


def publish_image(checkout: Checkout, name: str, repository: str, options: PublishOptions) -> Publication:
    """Build, prove, verify, sign and send the image of the environment `name` to `repository`.

    Nothing is sent before the image is proven and verified, and no tag refers to it before all that belongs to it is there.
    Raises UserError.
    """
    reference = _parse_repository(repository)
    locked = locks.load(checkout, name)
    request = options.request
    names = image_tags(locked, request.flavour, request.extra_wheels)
    folder = checkout.build / "publish" / f"{name}-{request.flavour}"
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(checkout, locked, reference, names, folder, options)
    registry = Registry(reference, push=True)
    with exclusive(folder / ".lock", f"publishing {name}"):
        image = _build(job)
        _refuse_existing_tags(job, registry, image.digest)  # first, because the rest takes long
        report = _prove(job, image)
        verify_options = VerifyOptions(
            bundle=request.bundle,
            channel=request.channel,
            added=request.extra_wheels,
            base=request.base,
            source=request.source or "",  # what is signed says it, and no image for itself
        )
        verification = verify_image(checkout, locked, image, names[0], verify_options)
        if not verification.passed:
            return Publication((), verification)
        if options.recorded and verification.expected:
            record.confirm(checkout, locked, request.flavour, verification.expected)
        sbom = Path(verification.sbom)
        signed = [_sign(job, payload) for payload in _statements(job, image, report, sbom)]
        _send(job, registry, image, sbom.read_bytes(), signed)
        _clean(job)
    return Publication(tuple(f"{reference.name}:{tag}" for tag in job.tags), verification, report.summary)


def _parse_repository(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.tag or reference.digest:
        raise UserError(
            f"{text}: expected a repository, found a tag or digest; specify {reference.name}: publish chooses the tags, by "
            "stack and lock"
        )
    return reference


def _build(job: _Job) -> Image:
    """Return the image in a layout, which is built where the options specify none.

    One with extra wheels that the options lack is refused: it would take the tags of one without.
    """
    built = job.options.built
    image = Layout(built).only_image() if built else _build_to_layout(job)
    labels = ImageLabels.parse(image.labels, job.names[0])
    expected = f"{job.locked.name} ({job.options.request.flavour})"
    if (found := f"{labels.environment} ({labels.flavour})") != expected:
        raise UserError(f"{built}: expected an image of {expected}, found one of {found}; specify another with --image")
    if labels.version != job.tags[0]:
        raise UserError(
            f"{built}: expected version {job.tags[0]} in its labels, found {labels.version}; "
            "specify the same --with options as for its build"
        )
    return image


def _build_to_layout(job: _Job) -> Image:
    """Build the image in the engine, which proves it, and in a layout, of the same layers."""
    prepared = building.prepare_image(job.checkout, job.locked, job.options.request)
    building.build_image(job.checkout, prepared, "docker")
    building.build_image(job.checkout, prepared, f"oci:{job.layout.folder}")
    return job.layout.image()


def _refuse_existing_tags(job: _Job, registry: Registry, digest: str) -> None:
    for tag in job.tags:
        found = registry.manifest(tag)
        if found and found[1].digest != digest and not job.options.move:
            raise UserError(
                f"{job.repository.name}:{tag}: already exists as {found[1].digest}, and users of a tag rely on it; "
                f"to make it {digest}, use --move"
            )


def _prove(job: _Job, image: Image) -> Report:
    """Return the report of the image: that of the options, of an interrupted call, or of a smoke test that is run now."""
    options, kept = job.options, job.folder / "report.json"
    if options.report:
        return _read_report(job, image, options.report)
    if kept.is_file():
        try:
            return _read_report(job, image, kept)
        except UserError:
            kept.unlink()
    if options.built:
        raise UserError(f"{options.built}: report of this image not found; {_remedy()}")
    status(f"proving {job.names[0]}")
    report = prove(job.checkout, job.names[0], job.folder / "smoke")
    _require_proof(job, image, report)
    files.write(kept, report.text)
    return report


def _read_report(job: _Job, image: Image, path: Path) -> Report:
    report = reports.read(job.checkout, path, job.locked.name, _remedy())
    _require_proof(job, image, report)
    return report


def _require_proof(job: _Job, image: Image, report: Report) -> None:
    """Raise UserError where the report is of another image or lock, or does not have all that the plan of its run makes."""
    report.refuse_other_image(image.digest, job.locked.digest)
    require_complete(job.checkout, report, job.locked, max_age=MAX_AGE)


def _statements(job: _Job, image: Image, report: Report, sbom: Path) -> list[bytes]:
    """Return the statements about the image: what it was proven to do, where it comes from, and what is in it.

    The SBOM as CycloneDX lies beside that as SPDX, the file `sbom`.
    """
    labels, name = ImageLabels.parse(image.labels, job.names[0]), job.repository.name
    labels = replace(labels, extra_wheels=tuple(wheel.text for wheel in job.options.request.extra_wheels))  # by our URLs
    sboms = {provenance.SPDX: sbom, provenance.CYCLONEDX: sbom.with_name(CYCLONEDX)}
    about = provenance.statements(job.checkout, job.locked, labels, sboms, name, image.digest)
    return [attestation.statement(report.fields, name, image.digest), *about]


def _sign(job: _Job, payload: bytes) -> SignedStatement:
    """Return a signed statement; that of an interrupted call where it is the same."""
    kept = job.folder / f"{files.sha256(payload + str(job.options.key).encode())}.signed"
    if not kept.is_file():
        files.write(kept, signing.sign(payload, Signer(job.options.key)).bundle)
    return SignedStatement(kept.read_bytes(), signing.predicate_type(payload))


def _send(job: _Job, registry: Registry, image: Image, sbom: bytes, signed: Sequence[SignedStatement]) -> None:
    """Send the image, its SBOM and its statements, and then the tags; raises UserError."""
    layout, manifest = image.layout, image.descriptor
    status(f"sending {job.repository.name}@{image.digest}")
    for blob in image.blobs:
        layout.verify_blob(blob)
        registry.upload(layout.blob(blob.digest), blob)
    registry.put(layout.read(manifest), manifest.media_type)
    attach(registry, layout, manifest, SBOM, sbom)
    for statement in signed:
        attach_statement(registry, layout, manifest, statement)
    for tag in reversed(job.tags):  # the one by stack and lock, which says that all is there, last
        registry.put(layout.read(manifest), manifest.media_type, tag)
    status(f"published {job.repository.name}@{image.digest}")


def _clean(job: _Job) -> None:
    """Remove what was kept for the next call."""
    for file in (job.folder / "report.json", *job.folder.glob("*.signed")):
        file.unlink(missing_ok=True)
    shutil.rmtree(job.layout.folder, ignore_errors=True)


def _remedy() -> str:
    return f"run {as_typed('smoke', '--image', 'REF')} and pass its report.json with --report"
