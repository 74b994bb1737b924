"""Verifying images: is this what this lock builds, and what was proven of it?"""

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import build as building
from smokehouse.images import contexts, debian_lock, extra_wheels
from smokehouse.images.base import Base
from smokehouse.images.build import Compression, ImageRequest
from smokehouse.images.extra_wheels import ExtraWheel
from smokehouse.images.fetch import open_image, work_folder
from smokehouse.images.labels import ImageLabels
from smokehouse.images.paths import ENV, FILES_JSON
from smokehouse.images.spec import ImageSpec
from smokehouse.locks import check
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import LOCK_JSON
from smokehouse.oci import model
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.model import MAX_DOCUMENT, Manifest, parse
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.proofs import attestation
from smokehouse.proofs.attestation import BUNDLE, ENVELOPE, Signed, Signer
from smokehouse.proofs.compare import Difference, Verification, check_list, compare_config, compare_files, first_difference
from smokehouse.proofs.expected import ExpectedFiles
from smokehouse.runs import report as report_module
from smokehouse.storage.folder_lock import exclusive

_SHOWN = 20


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify. `signer` is whose statements are believed; without one, they are only counted.

    `added` has wheels that no lock names, where the image's label does not say where to fetch them.
    """

    bundle: Path | None = None
    channel: str | None = None
    signer: Signer | None = None
    rebuild: bool = False
    trust_base: bool = False
    added: tuple[ExtraWheel, ...] = ()


def verify_reference(checkout: Checkout, text: str, options: VerifyOptions) -> Verification:
    """Say of the image that `text` names whether it is what the lock in this checkout builds; raises UserError."""
    with open_image(checkout, text) as (found, registry):
        name = ImageLabels.parse(found.labels, text).environment
        return verify_image(checkout, check.load(checkout, name), text, found, registry, options)


def verify_image(
    checkout: Checkout,
    locked_environment: LockedEnvironment,
    text: str,
    found: Image,
    registry: Registry | None,
    options: VerifyOptions,
) -> Verification:
    """Return the verdict over the image `found`, called `text`; raises UserError."""
    labels = ImageLabels.parse(found.labels, text)
    name, flavour = labels.environment, labels.flavour
    promise, locked, digest = locked_environment.environment, locked_environment.lock, locked_environment.digest
    if labels.lock != digest:
        revision = labels.revision
        where = f"git checkout {revision}" if re.fullmatch("[0-9a-f]{40}", revision) else "check out the commit that has it"
        raise UserError(f"{text}: of another lock of {name} than the one here ({digest[:12]}); {where}")
    verdict = Verification(text, found.digest, name, digest)
    status(f"verifying {found.digest} against {locked_environment.files.name}/{LOCK_JSON}")
    asked = extra_wheels.from_labels(labels, options.added, text)
    added = extra_wheels.fetch_wheels(checkout, asked, promise, locked)
    verdict.added = [one.text for one in asked]
    bundle = building.bundle_for(checkout, locked_environment, flavour, options.bundle, options.channel)
    base, below, runtime = _base(checkout, labels, found, options, verdict)
    extra_wheels.require_torch_abi(asked, locked, bundle.wheels)
    spec = ImageSpec(locked_environment, flavour, labels.ops, base, added)
    compare_config(checkout, found, spec.labels().as_dict(), runtime, verdict)
    folder = checkout.root / "build" / "verify" / f"{name}-{flavour}"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", f"verifying {name}"):
        contents = ExpectedFiles(checkout, locked)
        prefix = contexts.conda_context(folder / "conda", spec.conda, locked, bundle) / "prefix.tar"
        contents.add_conda(prefix)
        for file in locked.pip:
            if file.file.endswith(".whl"):
                contents.add_wheel(bundle.wheels / file.file)
        for one in added:
            contents.add_wheel(one.path)
        smokehouse_files = contexts.smokehouse_files(checkout, spec, bundle, folder)
        contents.add_ours(smokehouse_files)
        verdict.sbom = str(smokehouse_files / "sbom.spdx.json")

        def keep(path: str) -> bool:
            unknown = path.startswith(f"{ENV}/") and path not in contents.files
            return path == FILES_JSON or (unknown and path.endswith((".py", "/RECORD")))

        tree = found.tree(keep, last=below)
        under = dict(tree.entries)
        found.tree(keep, tree, first=below)
        for file in locked.pip:
            if not file.file.endswith(".whl"):
                verdict.uncompared += contents.add_built(file, bundle.wheels / file.file, tree)
        contents.add_compiled(prefix, folder / "compiled")
    compare_files(contents, tree, under, verdict)
    check_list(contents, tree, verdict)
    verdict.differences.sort(key=lambda difference: (difference.layer, difference.path))
    if options.rebuild:
        _rebuild(checkout, spec, labels, found, options, verdict)
    if registry:
        _check_proof(checkout, registry, options, verdict)
    return verdict


def show(verdict: Verification, as_json: bool) -> int:
    """Print a verdict and return the exit code: 1 where something differs."""
    if as_json:
        print(json.dumps({**asdict(verdict), "passed": verdict.passed}, indent=1))
        return int(not verdict.passed)
    for difference in verdict.differences[:_SHOWN]:
        where = f"layer {difference.layer}: " if difference.layer else ""
        print(f"{where}{difference.path}: {difference.problem}")
    if (more := len(verdict.differences) - _SHOWN) > 0:
        print(f"and {more} more; --json lists them all")
    print(f"image    {verdict.digest}")
    print(f"lock     {verdict.environment}, sha256:{verdict.lock}")
    for text in verdict.added:
        print(f"with     {text}, which the lock does not name")
    print(f"base     {verdict.base}")
    print(f"files    {', '.join(f'{count} of {owner}' for owner, count in verdict.files.items())}")
    if verdict.uncompared:
        some = ", ".join(path.rpartition("/")[2] for path in verdict.uncompared[:4])
        how = "compared by the rebuild" if verdict.rebuilt else "not compared: --rebuild does"
        print(f"built    {len(verdict.uncompared)} files were built from source ({some} ...), {how}")
    if verdict.rebuilt:
        print(f"rebuilt  {verdict.rebuilt}")
    print(f"proven   {verdict.proof or 'nothing is attached: a layout or an engine has no statements'}")
    builds = f"what the lock builds{' with the wheels above' if verdict.added else ''}"
    print(f"VERIFIED  this is {builds}" if verdict.passed else f"DIFFERENT  this is not {builds}")
    return int(not verdict.passed)


def _base(
    checkout: Checkout, labels: ImageLabels, found: Image, options: VerifyOptions, verdict: Verification
) -> tuple[Base, int, model.Runtime]:
    """Return the base that the image names, how many layers it has, and what it says of starting it."""
    named, digest = labels.base_name, labels.base_digest
    if named.startswith("debian-"):
        if options.trust_base:
            verdict.base = f"{named}@{digest}, not looked at"
            return Base(named, digest, debian_lock.read(checkout)), 1, model.Runtime()
        base = bases.make(checkout)
        assert base.layout
        made = Layout(base.layout).image()
        verdict.base = f"{base.name}, {len(base.packages)} packages of {debian_lock.LOCK}, made again here"
    else:
        base = bases.parse(f"{named}@{digest}")
        if options.trust_base:
            raise UserError(f"{named}: --trust-base is for Debian; how many layers this base has, its registry says")
        with tempfile.TemporaryDirectory(dir=work_folder(checkout)) as folder:
            made = _fetched_config(Reference.parse(f"{named}@{digest}"), Layout(Path(folder)))
        verdict.base = f"{named}@{digest}, trusted by its digest"
    layers = made.config.rootfs.diff_ids
    for number, (here, there) in enumerate(zip(layers, found.config.rootfs.diff_ids, strict=False), 1):
        if here != there:
            verdict.differences.append(Difference(number, "(the whole layer)", f"not that of the base {base.name}"))
    if len(layers) > len(found.config.rootfs.diff_ids):
        raise UserError(f"{verdict.image}: has fewer layers than its base {base.name}; it is not built on it")
    return base, len(layers), made.config.config


def _fetched_config(reference: Reference, layout: Layout) -> Image:
    """Return an image of a registry without its layers."""
    registry = Registry(reference)
    found = registry.manifest(reference.digest)
    if found and found[1].media_type in model.INDEXES:
        chosen = model.choose_image(parse(model.Index, found[0], str(reference)), str(reference))
        found = registry.manifest(chosen.digest)
    if not found:
        raise UserError(f"{reference}: the base is not there any more, so its layers cannot be told; ask its owner")
    data, descriptor = found
    layout.put(data, descriptor.media_type)
    registry.fetch((parse(Manifest, data, str(reference)).config,), layout)
    return layout.open(descriptor)


def _rebuild(
    checkout: Checkout, spec: ImageSpec, labels: ImageLabels, found: Image, options: VerifyOptions, verdict: Verification
) -> None:
    """Build the image again and note the first file that differs, where the digest does."""
    base = spec.base
    with tempfile.TemporaryDirectory(dir=work_folder(checkout)) as folder:
        request = ImageRequest(
            flavour=spec.flavour,
            ops=spec.ops,
            base=f"{base.name}@{base.digest}" if not base.name.startswith("debian-") else None,
            extra_wheels=tuple(wheel.request for wheel in spec.extra_wheels),
            bundle=options.bundle,
            channel=options.channel,
            source=labels.source,
        )
        prepared = building.prepare_image(checkout, spec.locked, request)
        compression: Compression = "zstd" if found.manifest.layers[-1].media_type.endswith("zstd") else "gzip"
        built = building.build_image(checkout, prepared, f"oci:{folder}/layout", compression=compression)
        again = Layout(Path(folder, "layout")).image()
        if built.digest == found.digest:
            verdict.rebuilt = "the same digest"
            return
        verdict.rebuilt = f"another digest, {built.digest}"
        verdict.differences.insert(0, first_difference(found, again))


def _check_proof(checkout: Checkout, registry: Registry, options: VerifyOptions, verdict: Verification) -> None:
    """Note what the statements in the registry prove; raises UserError for one that is not to be trusted."""
    signed = statements(registry, verdict.digest, checkout)
    if not signed:
        verdict.proof = "nothing: no statement is attached to this image"
        return
    if not options.signer:
        verdict.proof = f"not checked: {len(signed)} signed statements are attached; say whose to believe, with --key FILE"
        return
    refusals = []
    for one in reversed(signed):
        try:
            verdict.report = attestation.check(checkout, one, options.signer, verdict.digest, verdict.lock)
        except UserError as refused:
            refusals.append(str(refused))
            continue
        verdict.proof = report_module.summary(verdict.report)
        return
    raise UserError(refusals[0])


def statements(registry: Registry, digest: str, checkout: Checkout) -> list[Signed]:
    """Return the signed statements that are attached to the image `digest`, as they were attached; raises UserError."""
    found = []
    for entry in registry.referrers(digest):
        if entry.artifact_type != ENVELOPE:
            continue
        answer = registry.manifest(entry.digest)
        if not answer:
            continue
        manifest = parse(Manifest, answer[0], entry.digest)
        blobs = {layer.media_type: layer for layer in manifest.layers}
        if ENVELOPE not in blobs or any(blob.size > MAX_DOCUMENT for blob in blobs.values()):
            raise UserError(f"{entry.digest}: no statement, or one too large; do not trust it")
        with tempfile.TemporaryDirectory(dir=work_folder(checkout)) as folder:
            layout = Layout(Path(folder))
            registry.fetch(tuple(blobs.values()), layout)
            bundle = layout.read(blobs[BUNDLE]) if BUNDLE in blobs else None
            found.append(Signed(layout.read(blobs[ENVELOPE]), bundle))
    return found
