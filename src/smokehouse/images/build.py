"""Build images: every input is downloaded and verified here, then assembled, or passed to BuildKit as build contexts.

Both ways give the same layers and the same configuration, and so the same image ID.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from smokehouse import oci
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import dockerfile, record
from smokehouse.images.assemble import Assembled, assemble
from smokehouse.images.base import Base
from smokehouse.images.contexts import loader_wheel, make_contexts
from smokehouse.images.labels import Flavour, Ops
from smokehouse.images.layers import Compression
from smokehouse.images.spec import ImageSpec, created, oldest_driver
from smokehouse.installs import Bundle, bundler
from smokehouse.installs import bundle as bundles
from smokehouse.installs.extra_wheels import ExtraWheel, fetch_wheels, require_torch_abi
from smokehouse.locks import Lock, LockedEnvironment
from smokehouse.oci.layout import Layout
from smokehouse.oci.reference import Reference
from smokehouse.programs import buildx
from smokehouse.programs import docker as engine
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

_TOOLKIT = {"cuda-nvcc", "cuda-cuobjdump"}  # in conda-forge, the first does not depend on the second


@dataclass(frozen=True)
class ImageRequest:
    """Which image of an environment to build, and from what.

    `base` is REF@sha256:…, or None for Debian from docker/base.lock. Without `ops`, DeepSpeed's are compiled ahead of time
    where lock and bundle have a toolkit. Everything comes from `bundle`, or from the index and `channel`, a copy or mirror
    of conda-forge. `source` is the URL of the checkout, for the labels.
    """

    flavour: Flavour = "runtime"
    ops: Ops | None = None
    base: str | None = None
    extra_wheels: tuple[ExtraWheel, ...] = ()
    bundle: Path | None = None
    channel: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to be built: `bake` is the file that complements docker/docker-bake.hcl in `folder`.

    `contexts` has the folder of each build context but the base's by its name.
    """

    bake: Path
    spec: ImageSpec
    contexts: Mapping[str, Path]
    folder: Path


@dataclass(frozen=True)
class Built:
    """An image that was built: the `digest` of its manifest, its destination, and its `id`, that of its configuration."""

    digest: str
    place: str
    labels: Mapping[str, str]
    id: str


def prepare_image(checkout: Checkout, locked: LockedEnvironment, request: ImageRequest) -> Prepared:
    """Download and verify every input of an image, and write the bake file that builds it; raises UserError."""
    with loader_wheel(checkout) as wheel:  # which is built while the rest is fetched
        spec, bundle = _fetch(checkout, locked, request)
        bake_folder = dockerfile.prepare_folder(checkout)
        folder = checkout.build / "images" / f"{locked.name}-{spec.flavour}"
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock", f"preparing the image of {locked.name}"):
            status(f"preparing {spec.tags[0]} ({len(spec.plan.numbered) + 1} layers of wheels)")
            contexts = make_contexts(checkout, spec, bundle, folder, wheel)
            named = {name: str(path) for name, path in contexts.items()}
            target = _bake_target(spec, {"base": base_context(spec.base)} | named)
            bake = folder / "bake.json"
            files.write(bake, json.dumps({"target": {buildx.bake_target(locked.name): target}}, indent=1) + "\n")
    return Prepared(bake, spec, contexts, bake_folder)


def build_image(
    checkout: Checkout,
    prepared: Prepared,
    output: str,
    *,
    compression: Compression = "zstd",
    builder: str | None = None,
    no_cache: bool = False,
) -> Built:
    """Build a prepared image to `output`: oci:DIR, docker or push:REF; a failed build leaves the output as it was.

    BuildKit builds it where `builder`, a Buildx builder or a Docker context, is specified. Raises UserError.
    """
    kind, _, place = output.partition(":")
    if kind not in ("oci", "docker", "push") or bool(place) == (kind == "docker"):
        raise UserError(f"--output: expected oci:DIR, docker or push:REF, found {output}")
    if kind == "oci":
        _require_layout(Path(place))
    if kind == "push" and Reference.parse(place).digest:
        raise UserError(f"--output: expected push:HOST/NAME:TAG, found {place}; the digest follows from the image")
    if kind == "docker":
        engine.require()  # before the work, not after it
    if builder is not None:
        return _build_with_buildkit(prepared, kind, place, compression, builder, no_cache=no_cache)
    spec = prepared.spec
    with TemporaryDirectory(dir=prepared.bake.parent) as folder:
        store = Path(folder, "layers") if no_cache else None
        assembled = assemble(checkout, spec, prepared.contexts, compression, store)
        if kind == "push":
            return _push(assembled, spec, place, Layout(Path(folder, "layout")))
        if kind == "docker":
            _load(assembled.archive(Layout(Path(folder, "layout")), spec.tags[0]), spec)
            return _built(assembled, spec, spec.tags[0])
        target = Path(place).absolute()
        with _replacing(target) as partial:
            assembled.write(Layout(partial), spec.tags[0])
        return _built(assembled, spec, str(target))


def record_image(checkout: Checkout, prepared: Prepared, *, no_cache: bool = False) -> Built:
    """Assemble a prepared image, and write what it is to lockfiles/NAME/image.json, its place; raises UserError."""
    with TemporaryDirectory(dir=prepared.bake.parent) as folder:
        store = Path(folder, "layers") if no_cache else None
        assembled = assemble(checkout, prepared.spec, prepared.contexts, "zstd", store)
    place = record.write(checkout, prepared.spec.locked, prepared.spec.flavour, assembled.recorded)
    return _built(assembled, prepared.spec, str(place))


def _built(assembled: Assembled, spec: ImageSpec, place: str) -> Built:
    return Built(assembled.recorded.digest, place, spec.labels.as_dict(), assembled.recorded.id)


def _push(assembled: Assembled, spec: ImageSpec, place: str, layout: Layout) -> Built:
    """Send the image to the reference `place`, and its tag last."""
    reference = Reference.parse(place)
    manifest = assembled.write(layout, spec.tags[0])
    registry, image = oci.Registry(reference, push=True), layout.open(manifest)
    for blob in image.blobs:
        registry.upload(layout.blob(blob.digest), blob)
    registry.put(layout.read(manifest), manifest.media_type, reference.tag or "latest")
    return _built(assembled, spec, f"{place}@{manifest.digest}")


def _load(archive: IO[bytes] | Iterator[bytes], spec: ImageSpec) -> None:
    """Load an image into the engine, under all its tags."""
    engine.load(archive, spec.tags[0])
    engine.tag(spec.tags[0], spec.tags[1:])


def _build_with_buildkit(
    prepared: Prepared, kind: str, place: str, compression: Compression, builder: str, *, no_cache: bool
) -> Built:
    """Build the image from docker/Dockerfile, on a builder that is another engine than this one."""
    options = f"compression={compression},force-compression=true,oci-mediatypes=true"
    options += ",compression-level=3" if compression == "zstd" else ""
    bake_files = [Path("docker/docker-bake.hcl"), prepared.bake]
    spec, name = prepared.spec, prepared.spec.tags[0]

    def bake(output: str) -> buildx.Baked:
        status(f"building {name}")
        output = f"{output},{options}"
        target = buildx.bake_target(spec.locked.name)
        return buildx.bake(prepared.folder, bake_files, target, output, builder=builder, no_cache=no_cache)

    labels = spec.labels.as_dict()
    if kind == "push":
        baked = bake(f"type=image,name={place},push=true")
        return Built(baked.digest, f"{place}@{baked.digest}", labels, baked.id)
    if kind == "docker":
        with TemporaryDirectory(dir=prepared.bake.parent) as temporary:
            archive = Path(temporary, "image.tar")
            baked = bake(f"type=docker,dest={archive},name={name}")
            with archive.open("rb") as file:
                _load(file, spec)
        return Built(baked.digest, name, labels, baked.id)
    folder = Path(place).absolute()
    with _replacing(folder) as partial:
        baked = bake(f"type=oci,dest={partial},tar=false,name={name}")
    return Built(baked.digest, str(folder), labels, baked.id)


def bundle_for(
    checkout: Checkout, locked: LockedEnvironment, flavour: Flavour, folder: Path | None, channel: str | None
) -> Bundle:
    """Return the bundle in `folder`, or one made from `channel` where None, every file verified; raises UserError."""
    if folder:
        bundle = bundles.read(folder, locked)
        bundle.require_conda(devel=flavour == "devel")
        bundle.verify()
        return bundle
    folder = checkout.build / "bundles" / locked.name
    return bundler.make(locked, folder, channel=channel, devel=True, reuse=sorted(folder.parent.glob("*")))


def base_context(base: Base) -> str:
    """Return the base as a build context of buildx."""
    # buildx 0.33 rejects a layout without a tag: https://github.com/docker/buildx/issues/3793
    place = f"oci-layout://{base.layout}:{bases.TAG}" if base.layout else f"docker-image://{base.name}"
    return f"{place}@{base.digest}"


def _fetch(checkout: Checkout, locked: LockedEnvironment, request: ImageRequest) -> tuple[ImageSpec, Bundle]:
    """Download what the image is built from; return its specification and the bundle that has its packages."""
    oldest_driver(checkout, locked.cuda)  # an unknown CUDA release is refused before anything is downloaded
    wheels = fetch_wheels(checkout, request.extra_wheels, locked.environment, locked.lock)
    base = bases.parse(request.base) if request.base else bases.make(checkout)
    bundle = bundle_for(checkout, locked, request.flavour, request.bundle, request.channel)
    require_torch_abi(request.extra_wheels, locked.lock, bundle.wheels)
    ops = _choose_ops(request.ops, available=bundle.has_devel and _has_toolkit(locked.lock))
    return ImageSpec(locked, request.flavour, ops, base, wheels, request.source or ""), bundle


def _choose_ops(requested: Ops | None, *, available: bool) -> Ops:
    if requested == "aot" and not available:
        tools = " and ".join(sorted(_TOOLKIT))
        raise UserError(
            f"--ops aot: requires deepspeed as source distribution, and {tools} in [conda] devel, in lock and bundle; add them"
        )
    return requested or ("aot" if available else "none")


def _has_toolkit(lock: Lock) -> bool:
    """Return whether DeepSpeed is built from source, and the lock has what its ops are compiled with."""
    devel = {package.name for package in lock.conda if package.category == "devel"}
    return devel >= _TOOLKIT and any(file.name == "deepspeed" and not file.file.endswith(".whl") for file in lock.pip)


def _bake_target(spec: ImageSpec, contexts: Mapping[str, str]) -> dict[str, object]:
    """Return the target of the bake file."""
    plan = spec.plan
    return {
        "contexts": contexts,
        "args": {
            "LAYERS": f"{len(plan.numbered):02}",
            "LIBRARIES": f"{len(plan.libraries):02}",
            "OPS": spec.ops,
            "SOURCE_DATE_EPOCH": str(int(datetime.fromisoformat(created(spec.locked.lock)).timestamp())),
        },
        "labels": spec.labels.as_dict(),
        "inherits": ["image"],  # of docker/docker-bake.hcl
    }


def _require_layout(folder: Path) -> None:
    """Raise UserError where `folder` has other files than an OCI layout, which would be replaced."""
    if folder.exists() and not (folder / "oci-layout").is_file() and any(folder.iterdir()):
        folder = folder.absolute()
        raise UserError(f"{folder}: expected an OCI layout or an empty folder, found other files; specify another folder")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a folder for an OCI layout, which replaces `folder` when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(partial / "replaced")
            shutil.rmtree(partial / "replaced")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
