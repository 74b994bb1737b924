"""Verify an image: whether it is what the lock in this checkout builds, and what was proven of it.

An image is verified in four steps: it is opened, what the lock builds is made again, both are compared file by file, and
the result is concluded. `verify_image` has them in this order.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import size, status
from smokehouse.errors import UserError
from smokehouse.images import build as building
from smokehouse.images import contexts
from smokehouse.images.build import ImageRequest
from smokehouse.images.fetch import open_image, work_folder
from smokehouse.images.labelled_wheels import from_labels
from smokehouse.images.labels import ImageLabels
from smokehouse.images.layers import Compression
from smokehouse.images.paths import ENV, FILES_JSON
from smokehouse.images.spec import ImageSpec
from smokehouse.installs import Bundle, extra_wheels
from smokehouse.installs.extra_wheels import ExtraWheel
from smokehouse.locks import LOCK_JSON, LockedEnvironment
from smokehouse.oci.filesystem import Entry, Tree
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.registry import Registry
from smokehouse.proofs import attestation
from smokehouse.proofs.attestation import Signer
from smokehouse.proofs.base import ExpectedBase, expect_base
from smokehouse.proofs.compare import (
    Difference,
    Verification,
    compare_base,
    compare_config,
    compare_files,
    compare_list,
    first_difference,
)
from smokehouse.proofs.expected import ExpectedFiles
from smokehouse.proofs.referrers import fetch_statements
from smokehouse.storage.folder_lock import exclusive


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify: with packages from `bundle` or `channel`, and statements signed by `signer`, None to count them.

    `rebuild` builds the image again; `trust_base` does not compare a Debian base. `added` has extra wheels that the image's
    label specifies without a URL.
    """

    bundle: Path | None = None
    channel: str | None = None
    signer: Signer | None = None
    rebuild: bool = False
    trust_base: bool = False
    added: tuple[ExtraWheel, ...] = ()


@dataclass(frozen=True)
class _Subject:
    """An image to verify, which messages call `reference`, and what its labels say that it was built from.

    `folder` is for what is made to compare it with.
    """

    checkout: Checkout
    locked: LockedEnvironment
    image: Image
    reference: str
    labels: ImageLabels
    extra_wheels: tuple[ExtraWheel, ...]
    folder: Path


@dataclass(frozen=True)
class _Expectation:
    """What the lock builds: the base and the files. `prefix` is the tar file of the conda packages, `sbom` the SBOM."""

    spec: ImageSpec
    base: ExpectedBase
    files: ExpectedFiles
    bundle: Bundle
    prefix: Path
    sbom: Path


@dataclass(frozen=True)
class _Comparison:
    """How an image compares: its differences, its files by owner, and the files that only a rebuild can compare."""

    differences: list[Difference]
    files: dict[str, int]
    uncompared: list[str]


def verify_reference(checkout: Checkout, reference: str, options: VerifyOptions) -> Verification:
    """Verify the image `reference`, and in a registry its statements, against the lock in this checkout; raises UserError."""
    with open_image(checkout, reference) as (image, registry):
        environment = ImageLabels.parse(image.labels, reference).environment
        verification = verify_image(checkout, locks.load(checkout, environment), image, reference, options)
        return _verify_statements(checkout, registry, verification, options.signer) if registry else verification


def verify_image(
    checkout: Checkout, locked: LockedEnvironment, image: Image, reference: str, options: VerifyOptions
) -> Verification:
    """Verify that `image`, which messages call `reference`, is what `locked` builds; raises UserError."""
    subject = _open(checkout, locked, image, reference, options)
    status(f"verifying {image.digest} against {locked.files.name}/{LOCK_JSON}")
    with exclusive(subject.folder / ".lock", f"verifying {locked.name}"):
        expected = _expect(subject, options)
        comparison = _compare(subject, expected)
    return _conclude(subject, expected, comparison, options)


def _open(checkout: Checkout, locked: LockedEnvironment, image: Image, reference: str, options: VerifyOptions) -> _Subject:
    """Read what the image says that it was built from; refuses an image of another lock."""
    labels = ImageLabels.parse(image.labels, reference)
    if labels.lock != locked.digest:
        found = re.fullmatch("[0-9a-f]{40}", labels.revision)
        remedy = f"git checkout {labels.revision}" if found else "check out the commit that has its lock"
        raise UserError(
            f"{reference}: expected an image of the lock of {locked.name} in this checkout ({locked.digest[:12]}), "
            f"found one of another lock ({labels.lock[:12]}); {remedy}"
        )
    wheels = from_labels(labels, options.added, reference)
    folder = work_folder(checkout) / f"{locked.name}-{labels.flavour}"
    folder.mkdir(exist_ok=True)
    return _Subject(checkout, locked, image, reference, labels, wheels, folder)


def _expect(subject: _Subject, options: VerifyOptions) -> _Expectation:
    """Make again what the lock builds, but for what is built from source."""
    checkout, locked, labels = subject.checkout, subject.locked, subject.labels
    wheels = extra_wheels.fetch_wheels(checkout, subject.extra_wheels, locked.environment, locked.lock)
    bundle = building.bundle_for(checkout, locked, labels.flavour, options.bundle, options.channel)
    base = expect_base(checkout, subject.image, labels, subject.reference, trust=options.trust_base)
    extra_wheels.require_torch_abi(subject.extra_wheels, locked.lock, bundle.wheels)
    spec = ImageSpec(locked, labels.flavour, labels.ops, base.base, wheels)
    status("verifying: preparing the expected files")
    prefix = contexts.conda_context(subject.folder / "conda", spec.conda, locked.lock, bundle) / "prefix.tar"
    smokehouse = contexts.smokehouse_files(checkout, spec, bundle, subject.folder)
    files = ExpectedFiles(checkout, locked.lock)
    files.add_conda(prefix)
    locked_wheels = [bundle.wheels / file.file for file in locked.lock.pip if file.file.endswith(".whl")]
    for path in (*locked_wheels, *(wheel.path for wheel in wheels), *smokehouse.parent.glob("*.whl")):
        files.add_wheel(path)
    files.add_smokehouse(smokehouse)
    return _Expectation(spec, base, files, bundle, prefix, smokehouse / "sbom.spdx.json")


def _compare(subject: _Subject, expected: _Expectation) -> _Comparison:
    """Compare the image with what is expected; its own record decides what was built from source."""
    tree, base = _read(subject.image, expected)
    uncompared: list[str] = []
    for file in subject.locked.lock.pip:
        if not file.file.endswith(".whl"):
            uncompared += expected.files.add_built(file, expected.bundle.wheels / file.file, tree)
    status("verifying: compiling Python files, to compare the bytecode")
    expected.files.add_compiled(expected.prefix, subject.folder / "compiled")
    differences = [*expected.base.differences]
    differences += compare_config(subject.checkout, subject.image, expected.spec.labels().as_dict(), expected.base.runtime)
    differences += compare_base(tree, base)
    found, counts = compare_files(expected.files, tree, base)
    differences += found
    differences += compare_list(expected.files, tree, {difference.path for difference in differences})
    base_files = {expected.base.base.name: sum(entry.kind != "folder" for entry in base.values())}
    return _Comparison(differences, base_files | counts, uncompared)


def _read(image: Image, expected: _Expectation) -> tuple[Tree, dict[str, Entry]]:
    """Return the file system of an image, and the entries of its base."""
    layers = image.manifest.layers
    status(f"verifying: reading {len(layers)} layers ({size(sum(layer.size for layer in layers))})")

    def keep(path: str) -> bool:
        unknown = path.startswith(f"{ENV}/") and path not in expected.files.files
        return path == FILES_JSON or (unknown and path.endswith((".py", "/RECORD")))

    tree = image.tree(keep, last=expected.base.layers)
    base = dict(tree.entries)
    image.tree(keep, tree, first=expected.base.layers)
    return tree, base


def _conclude(subject: _Subject, expected: _Expectation, comparison: _Comparison, options: VerifyOptions) -> Verification:
    """Return the result, with that of a rebuild where the options request one."""
    differences = sorted(comparison.differences, key=lambda difference: (difference.layer, difference.path))
    rebuilt = ""
    if options.rebuild:
        rebuilt, found = _rebuild(subject, expected, options)
        differences = [*found, *differences]
    return Verification(
        image=subject.reference,
        digest=subject.image.digest,
        environment=subject.locked.name,
        lock=subject.locked.digest,
        base=expected.base.description,
        files=comparison.files,
        uncompared=comparison.uncompared,
        differences=differences,
        rebuilt=rebuilt,
        sbom=str(expected.sbom),
        added=[wheel.text for wheel in subject.extra_wheels],
    )


def _rebuild(subject: _Subject, expected: _Expectation, options: VerifyOptions) -> tuple[str, list[Difference]]:
    """Build the image again; return the result, and the first difference where the digests differ."""
    spec, base, image = expected.spec, expected.spec.base, subject.image
    with TemporaryDirectory(dir=work_folder(subject.checkout)) as folder:
        request = ImageRequest(
            flavour=spec.flavour,
            ops=spec.ops,
            base=f"{base.name}@{base.digest}" if not base.name.startswith("debian-") else None,
            extra_wheels=subject.extra_wheels,
            bundle=options.bundle,
            channel=options.channel,
            source=subject.labels.source,
        )
        prepared = building.prepare_image(subject.checkout, subject.locked, request)
        compression: Compression = "zstd" if image.manifest.layers[-1].media_type.endswith("zstd") else "gzip"
        built = building.build_image(subject.checkout, prepared, f"oci:{folder}/layout", compression=compression)
        if built.digest == image.digest:
            return "the same digest", []
        return f"another digest, {built.digest}", [first_difference(image, Layout(Path(folder, "layout")).image())]


def _verify_statements(
    checkout: Checkout, registry: Registry, verification: Verification, signer: Signer | None
) -> Verification:
    """Return `verification` with what the newest statement by `signer` proves; raises UserError where all are refused."""
    statements = fetch_statements(registry, verification.digest, work_folder(checkout))
    if not statements:
        return replace(verification, proof="nothing: no statement is attached to this image")
    if not signer:
        count = f"{len(statements)} signed statements are attached"
        return replace(verification, proof=f"not verified: {count}; specify a trusted key with --key FILE")
    refusals = []
    for signed in reversed(statements):
        try:
            report = attestation.check(checkout, signed, signer, verification.digest, verification.lock)
        except UserError as refused:
            refusals.append(refused)
        else:
            return replace(verification, report=report.fields, proof=report.summary)
    raise refusals[0]
