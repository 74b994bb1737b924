"""The base that an image is built on: built again from docker/base.lock, or fetched by its digest."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import debian_lock
from smokehouse.images.base import Base
from smokehouse.images.fetch import work_folder
from smokehouse.images.labels import ImageLabels
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.model import INDEXES, Index, Manifest, Runtime, choose_image, parse
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.proofs.compare import Difference


@dataclass(frozen=True)
class ExpectedBase:
    """The base of an image: its number of `layers`, its config, how it is trusted, and the layers that are not the base's."""

    base: Base
    layers: int
    runtime: Runtime
    description: str
    differences: tuple[Difference, ...] = ()


def expect_base(checkout: Checkout, image: Image, labels: ImageLabels, reference: str, *, trust: bool) -> ExpectedBase:
    """Return the base that `image`, which messages call `reference`, was built on by its `labels`; raises UserError.

    With `trust`, a Debian base is not compared.
    """
    name, digest = labels.base_name, labels.base_digest
    if name.startswith("debian-"):
        if trust:
            base = Base(name, digest, debian_lock.read(checkout))
            return ExpectedBase(base, 1, Runtime(), f"{name}@{digest}, not verified")
        base = bases.make(checkout)
        assert base.layout  # of every base that is built here
        expected = Layout(base.layout).image()
        description = f"{base.name}, {len(base.packages)} packages of {debian_lock.LOCK}, built again here"
    else:
        base = bases.parse(f"{name}@{digest}")
        if trust:
            raise UserError(f"--trust-base: expected a Debian base, found {name}; drop the option, to count its layers")
        with TemporaryDirectory(dir=work_folder(checkout)) as folder:
            expected = _fetch_without_layers(Reference.parse(f"{name}@{digest}"), Layout(Path(folder)))
        description = f"{name}@{digest}, trusted by its digest"
    layers, found = expected.config.rootfs.diff_ids, image.config.rootfs.diff_ids
    if len(layers) > len(found):
        raise UserError(
            f"{reference}: expected at least the {len(layers)} layers of its base {base.name}, found {len(found)}; "
            "it is not built on that base, so do not trust it"
        )
    differences = tuple(
        Difference(number, "(the whole layer)", f"differs from that of the base {base.name}")
        for number, (one, other) in enumerate(zip(layers, found, strict=False), 1)
        if one != other
    )
    return ExpectedBase(base, len(layers), expected.config.config, description, differences)


def _fetch_without_layers(reference: Reference, layout: Layout) -> Image:
    """Fetch an image from a registry, but for its layers; raises UserError."""
    registry = Registry(reference)
    found = registry.manifest(reference.digest)
    if found and found[1].media_type in INDEXES:
        chosen = choose_image(parse(Index, found[0], str(reference)), str(reference))
        found = registry.manifest(chosen.digest)
    if not found:
        raise UserError(f"{reference}: base not found in its registry, which alone knows its layers; ask its owner")
    data, descriptor = found
    layout.put(data, descriptor.media_type)
    registry.fetch((parse(Manifest, data, str(reference)).config,), layout)
    return layout.open(descriptor)
