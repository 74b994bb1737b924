"""Publishing images: built, proven, verified, and only then given to a registry, the tags last."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images import build as building
from smokehouse.images.build import ImageRequest
from smokehouse.images.extra_wheels import ExtraWheel
from smokehouse.images.labels import Flavour, ImageLabels, Ops
from smokehouse.images.spec import tags as image_tags
from smokehouse.locks import check
from smokehouse.locks.check import LockedEnvironment
from smokehouse.oci import layout as oci
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.model import EMPTY, MANIFEST, Descriptor, Manifest, encode
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.programs import docker as engine
from smokehouse.programs.process import run
from smokehouse.proofs import attestation
from smokehouse.proofs import verify as verifying
from smokehouse.proofs.attestation import BUNDLE, ENVELOPE, Signed, Signer
from smokehouse.runs import report as report_module
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

SBOM = "application/spdx+json"
_SMOKING = 7200.0  # seconds


@dataclass(frozen=True)
class PublishOptions:
    """How to publish. `built` is a layout with the image and `report` its report, where they were made before.

    Wheels that no lock names are `added`.
    """

    flavour: Flavour = "runtime"
    ops: Ops | None = None
    key: Path | None = None
    built: Path | None = None
    report: Path | None = None
    bundle: Path | None = None
    channel: str | None = None
    source: str | None = None
    move: bool = False
    added: tuple[ExtraWheel, ...] = ()


def publish_image(checkout: Checkout, name: str, text: str, options: PublishOptions) -> int:
    """Publish the image of the environment `name` in the repository `text`, and return 0, or 1 where it is no good.

    Nothing is sent before the image was proven and verified, and no tag names it before all that belongs to it is
    there. What an interrupted call sent is used by the next. Raises UserError.
    """
    where = Reference.parse(text)
    if where.tag or where.digest:
        raise UserError(f"{text}: publish gives the tags, by stack and lock; name the repository alone, {where.name}")
    locked = check.load(checkout, name)
    names = image_tags(locked, options.flavour, options.added)
    tags = [tag.partition(":")[2] for tag in names]
    registry = Registry(where, push=True)
    folder = checkout.root / "build" / "publish" / f"{name}-{options.flavour}"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", f"publishing {name}"):
        found = _built(checkout, locked, names[0], folder, options)
        labels = ImageLabels.parse(found.labels, names[0])
        if (labels.environment, labels.flavour) != (name, options.flavour):
            raise UserError(f"{options.built}: an image of {labels.environment}, not of {name} ({options.flavour})")
        # Asked first, because the rest takes long.
        _refuse_taken(registry, tags, found.digest, options.move)
        report = _report(checkout, names[0], found, folder, locked.digest, options)
        verdict = verifying.verify_image(
            checkout,
            locked,
            names[0],
            found,
            None,
            verifying.VerifyOptions(bundle=options.bundle, channel=options.channel, added=options.added),
        )
        if not verdict.passed:
            return verifying.show(verdict, as_json=False)
        # An image with wheels that no lock names would take the tags of the one without.
        if labels.version != tags[0]:
            raise UserError(f"{options.built}: is {labels.version} by its labels, not {tags[0]}; give --with as for its build")
        payload = attestation.statement(report, where.name, found.digest)
        signed = _signed(payload, folder, options.key)
        _send(registry, found, Path(verdict.sbom).read_bytes(), signed)
        for tag in reversed(tags):  # the one by stack and lock, which says that all is there, last
            registry.put(found.layout.read(found.descriptor), found.descriptor.media_type, tag)
        status(f"published {where.name}@{found.digest}")
        for file in (folder / "report.json", *folder.glob("*.signed")):
            file.unlink(missing_ok=True)
        shutil.rmtree(_layout(folder).folder, ignore_errors=True)
    for tag in tags:
        print(f"{where.name}:{tag}")
    return 0


def _built(checkout: Checkout, locked: LockedEnvironment, local: str, folder: Path, options: PublishOptions) -> Image:
    """Return the image in a layout, built where it was not given."""
    if options.built:
        return Layout(options.built).image()
    request = ImageRequest(
        flavour=options.flavour,
        ops=options.ops,
        extra_wheels=options.added,
        bundle=options.bundle,
        channel=options.channel,
        source=options.source,
    )
    prepared = building.prepare_image(checkout, locked, request)
    digest = building.build_image(checkout, prepared, "docker").digest
    layout = _layout(folder)
    if (layout.folder / "index.json").is_file() and layout.image().digest == digest:
        return layout.image()
    archive = folder / "image.tar"
    try:
        engine.save(local, archive, checkout.root)
        found = oci.unpack_layout(archive, layout.folder).image()
    finally:
        archive.unlink(missing_ok=True)
    if found.digest != digest:
        raise UserError(f"{local}: this engine saves another image, {found.digest}, than {digest}; use its containerd store")
    return found


def _layout(folder: Path) -> Layout:
    """Return where the image lies that was built, until it is published."""
    return Layout(folder / "layout")


def _report(
    checkout: Checkout, local: str, found: Image, folder: Path, digest: str, options: PublishOptions
) -> dict[str, object]:
    """Return the report of the image: the one given, that of an interrupted call, or that of a smoke test run now."""
    if options.report:
        return report_module.read_report(checkout, options.report, found.digest, digest)
    kept = folder / "report.json"
    if kept.is_file():
        try:
            return report_module.read_report(checkout, kept, found.digest, digest)
        except UserError:
            kept.unlink()
    if options.built:
        raise UserError(f"{options.built}: there is no report of this image; name it: --report FILE")
    status(f"proving {local}")
    reports = folder / "smoke"
    command = [sys.executable, "-m", "smokehouse", "smoke", "--image", local, "--report", str(reports)]
    ended = run(command, deadline=_SMOKING, environ=os.environ, cwd=checkout.root)
    if ended.code:
        said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{local}: the smoke test failed ({' '.join(said)}); see {reports}; nothing was sent")
    report = report_module.read_report(checkout, reports / "report.json", found.digest, digest)
    files.write(kept, (reports / "report.json").read_bytes())
    return report


def _signed(payload: bytes, folder: Path, key: Path | None) -> Signed:
    """Return the signed statement, that of an interrupted call where it is the same."""
    kept = folder / f"{files.sha256(payload + str(key).encode())}.signed"
    bundle = kept.with_name(f"bundle.{kept.name}")
    if not kept.is_file():
        signed = attestation.sign(payload, Signer(key))
        if signed.bundle:
            files.write(bundle, signed.bundle)
        files.write(kept, signed.envelope)
    return Signed(kept.read_bytes(), bundle.read_bytes() if bundle.is_file() else None)


def _refuse_taken(registry: Registry, tags: list[str], digest: str, move: bool) -> None:
    for tag in tags:
        there = registry.manifest(tag)
        if there and there[1].digest != digest and not move:
            raise UserError(
                f"{registry.reference.name}:{tag}: is {there[1].digest} already, and who uses a tag trusts that it stays; "
                f"to make it {digest}, say --move"
            )


def _send(registry: Registry, found: Image, sbom: bytes, signed: Signed) -> None:
    """Give the registry the image and what belongs to it, under no tag of the image's yet; raises UserError."""
    layout = found.layout
    for blob in found.blobs:
        layout.verify_blob(blob)
        registry.upload(layout.blob(blob.digest), blob)
    registry.put(layout.read(found.descriptor), found.descriptor.media_type)
    statement = [layout.put(signed.envelope, ENVELOPE)]
    statement += [layout.put(signed.bundle, BUNDLE)] if signed.bundle else []
    for kind, blobs in ((SBOM, [layout.put(sbom, SBOM)]), (ENVELOPE, statement)):
        _attach(registry, layout, found.descriptor, kind, blobs)


def _attach(registry: Registry, layout: Layout, subject: Descriptor, kind: str, blobs: list[Descriptor]) -> None:
    empty = layout.put(b"{}", EMPTY)
    for blob in (empty, *blobs):
        registry.upload(layout.blob(blob.digest), blob)
    plain = subject.model_copy(update={"annotations": None, "platform": None})
    manifest = Manifest(schema_version=2, artifact_type=kind, config=empty, layers=tuple(blobs), subject=plain)
    data = encode(manifest)
    artefact = Descriptor(media_type=MANIFEST, digest=f"sha256:{files.sha256(data)}", size=len(data), artifact_type=kind)
    if not registry.put(data, MANIFEST):
        registry.add_referrer(artefact, subject.digest)
