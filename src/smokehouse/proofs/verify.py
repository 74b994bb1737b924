"""Verify an image: whether it is what the lock in this checkout builds, and what was proven of it.

What the lock builds is made again, and hashes are compared: nothing in the image is interpreted to reach the result.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import build as building
from smokehouse.images import contexts, record
from smokehouse.images.assemble import assemble
from smokehouse.images.fetch import open_image, work_folder
from smokehouse.images.labelled_wheels import compare_wheels
from smokehouse.images.labels import EXTRA_WHEELS, SOURCE, ImageLabels
from smokehouse.images.spec import ImageSpec
from smokehouse.installs import extra_wheels
from smokehouse.installs.extra_wheels import ExtraWheel
from smokehouse.locks import LOCK_JSON, LockedEnvironment
from smokehouse.oci import closed
from smokehouse.oci.layout import Image
from smokehouse.oci.registry import Registry
from smokehouse.proofs import signing, trust
from smokehouse.proofs.base import base_problem, expect_base
from smokehouse.proofs.compare import Difference, Verification, compare, printable
from smokehouse.proofs.referrers import fetch_statements
from smokehouse.proofs.signing import Signer
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify: with packages from `bundle` or `channel`, and statements signed by `signer`, None to count them.

    What the image may have beside the lock is named here, by hash, and never by the image: `added` has its extra wheels, and
    `base` is REF@sha256:…, None for Debian from docker/base.lock. `source` is the URL that its label has to specify, None to
    take it as a claim. With `quick`, nothing is made again: the image is compared with lockfiles/NAME/image.json.
    """

    bundle: Path | None = None
    channel: str | None = None
    signer: Signer | None = None
    added: tuple[ExtraWheel, ...] = ()
    base: str | None = None
    source: str | None = None
    quick: bool = False


@dataclass(frozen=True)
class _Subject:
    """An image to verify, which messages call `reference`, with its labels and those allowed wheels that they list.

    `refused` are the labels that name something else which the options do not allow. `folder` is for what is made to compare
    the image with.
    """

    checkout: Checkout
    locked: LockedEnvironment
    image: Image
    reference: str
    options: VerifyOptions
    labels: ImageLabels
    extra_wheels: tuple[ExtraWheel, ...]
    refused: list[Difference]
    folder: Path

    def result(self, **more: Any) -> Verification:
        """Return what is known of the image before it is compared, with `more`."""
        return Verification(
            image=self.reference,
            digest=self.image.digest,
            environment=self.locked.name,
            lock=self.locked.digest,
            id=self.image.manifest.config.digest,
            added=sorted(f"{wheel.name}#sha256={wheel.sha256}" for wheel in self.options.added),
            **more,
        )


def verify_reference(checkout: Checkout, reference: str, options: VerifyOptions) -> Verification:
    """Verify the image `reference`, and in a registry its statements, against the lock in this checkout; raises UserError."""
    if options.signer:
        signing.require_signer(options.signer)
    with open_image(checkout, reference) as (image, registry):
        locked = locks.load(checkout, ImageLabels.parse(image.labels, reference).environment)
        verification = verify_image(checkout, locked, image, reference, options)
        return _verify_statements(checkout, locked, registry, verification, options.signer)


def verify_image(
    checkout: Checkout, locked: LockedEnvironment, image: Image, reference: str, options: VerifyOptions
) -> Verification:
    """Verify that `image`, which messages call `reference`, is what `locked` builds, or built; raises UserError."""
    subject = _open(checkout, locked, image, reference, options)
    if options.quick:
        status(f"verifying {image.digest} against {locked.files.name}/{record.NAME}")
        return _compare_with_record(subject)
    if subject.refused:  # nothing of it is fetched or used
        return subject.result(base="not compared", differences=subject.refused)
    status(f"verifying {image.digest} against {locked.files.name}/{LOCK_JSON}")
    with exclusive(subject.folder / ".lock", f"verifying {locked.name}"), TemporaryDirectory(dir=subject.folder) as work:
        return _compare(subject, Path(work))


def _open(checkout: Checkout, locked: LockedEnvironment, image: Image, reference: str, options: VerifyOptions) -> _Subject:
    """Read what the image says that it was built from; refuses an image of another lock."""
    closed.read(image.layout.read(image.manifest.config), f"{reference}: configuration")  # its labels have one meaning
    labels = ImageLabels.parse(image.labels, reference)
    if labels.lock != locked.digest:
        raise UserError(
            f"{reference}: expected an image of the lock of {locked.name} in this checkout ({locked.digest[:12]}), "
            f"found one of another lock ({labels.lock[:12]}); check out the commit that has its lock"
        )
    wheels, problems = compare_wheels(labels, options.added)
    refused = [Difference(0, f"(config) label {EXTRA_WHEELS}", printable(problem)) for problem in problems]
    if not options.quick and (problem := base_problem(checkout, labels, options.base)):
        refused.append(Difference(0, "(config) label org.opencontainers.image.base.name", printable(problem)))
    folder = work_folder(checkout) / f"{locked.name}-{labels.flavour}"
    folder.mkdir(exist_ok=True)
    return _Subject(checkout, locked, image, reference, options, labels, wheels, refused, folder)


def _compare(subject: _Subject, work: Path) -> Verification:
    """Make again what the lock builds, and compare the image with it."""
    checkout, locked, labels, image = subject.checkout, subject.locked, subject.labels, subject.image
    options = subject.options
    wheels = extra_wheels.fetch_wheels(checkout, subject.extra_wheels, locked.environment, locked.lock)
    bundle = building.bundle_for(checkout, locked, labels.flavour, options.bundle, options.channel)
    if labels.ops == "aot":
        bundle.require_conda(devel=True)
    extra_wheels.require_torch_abi(subject.extra_wheels, locked.lock, bundle.wheels)
    base, trusted = expect_base(checkout, image, subject.reference, options.base, work)
    spec = ImageSpec(locked, labels.flavour, labels.ops, base, wheels, labels.source)
    claims, differences = _compare_origin(subject)
    result = subject.result(base=trusted, claims=claims)
    diff_ids = bases.image(checkout, base).config.rootfs.diff_ids
    if image.config.rootfs.diff_ids[: len(diff_ids)] != diff_ids:
        problem = f"differs from that of the base {base.name}"
        return replace(result, differences=[*differences, Difference(1, "(the whole layer)", problem)])
    status("verifying: making again what the lock builds")
    with contexts.loader_wheel(checkout) as wheel:
        made = contexts.make_contexts(checkout, spec, bundle, subject.folder, wheel)
    expected = assemble(checkout, spec, made, "zstd")
    status(f"verifying: comparing {len(expected.layers)} layers")
    differences += compare(image, expected.recorded, expected.layers)
    # By what it lists: another verification of this environment can be of other wheels, and end first.
    sboms = subject.folder / f"sbom-{files.hashed(made['ours'] / contexts.SPDX)[:16]}"
    for name in (contexts.CYCLONEDX, contexts.SPDX):
        files.write(sboms / Path(name).name, (made["ours"] / name).read_bytes())
    return replace(result, expected=expected.recorded, differences=differences, sbom=str(sboms / Path(contexts.SPDX).name))


def _compare_with_record(subject: _Subject) -> Verification:
    """Compare the image with what image.json has of it; nothing is made, and no artefact fetched."""
    labels, image, locked = subject.labels, subject.image, subject.locked
    if labels.extra_wheels:
        raise UserError(f"{subject.reference}: expected no extra wheels, which image.json lacks, found some; drop --quick")
    recorded, current = record.require(subject.checkout, locked, labels.flavour)
    expected = recorded.with_source(labels.source)
    claims, differences = _compare_origin(subject)
    if labels.source == recorded.labels.get(SOURCE, "") and image.digest != recorded.digest:
        claims.append(f"digest {recorded.digest} in {record.NAME}, of the same layers compressed otherwise")
    if not current:
        claims.append(f"{record.NAME} is of other files of Smokehouse than this checkout has, as an older commit had")
    return subject.result(
        method="recorded",
        base=f"as recorded in {locked.files.name}/{record.NAME}",
        expected=expected,
        claims=claims,
        differences=[*differences, *compare(image, expected)],
    )


def _compare_origin(subject: _Subject) -> tuple[list[str], list[Difference]]:
    """Return what an image says of its source that cannot be verified here, and what is wrong with it."""
    labels, options, claims, differences = subject.labels, subject.options, [], []
    if options.source is not None and labels.source != options.source:
        problem = f"expected {options.source or 'none'}, found {printable(labels.source) or 'none'}"
        differences.append(Difference(0, f"(config) label {SOURCE}", problem))
    elif options.source is None and labels.source:
        claims.append(f"source {printable(labels.source)}, as the image says; specify the URL with --source")
    for key, name in sorted((subject.image.descriptor.annotations or {}).items()):
        repository = name.partition("@")[0].rpartition("/")[2].partition(":")[0]
        if key.endswith(".name") and repository != subject.locked.name:  # it could replace another image
            claims.append(f"name {printable(name)}, under which engines load this layout")
    urls = {wheel.sha256: wheel.url for wheel in options.added}
    claims += [
        f"{wheel.name} from {wheel.url}, as the image says; it was taken from --with, by its hash"
        for wheel in subject.extra_wheels
        if wheel.url and wheel.url != urls[wheel.sha256]
    ]
    return claims, differences


def _verify_statements(
    checkout: Checkout,
    locked: LockedEnvironment,
    registry: Registry | None,
    verification: Verification,
    signer: Signer | None,
) -> Verification:
    """Return `verification` with what the newest statement by `signer` proves."""
    statements = fetch_statements(registry, verification.digest, work_folder(checkout)) if registry else []
    proof = trust.judge(checkout, locked, verification.digest, statements, signer)
    if not statements and not registry:
        proof = replace(proof, text="nothing: OCI layouts and engines have no statements")
    return replace(verification, report=proof.report, proof=proof.text, proven=proof.valid)
