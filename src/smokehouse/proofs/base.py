"""The base that an image is built on: built again from docker/base.lock, or fetched by its digest."""

from dataclasses import dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import size
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import debian_lock
from smokehouse.images.base import Base
from smokehouse.images.labels import ImageLabels
from smokehouse.oci.filesystem import decompress
from smokehouse.oci.layout import Image

_CHUNK = 1 << 20
_MOST = 4 << 30  # bytes of the lowest layer, unpacked; Debian has 0.6 GB


@dataclass(frozen=True)
class ExpectedBase:
    """The base of an image, and how it is trusted."""

    base: Base
    image: Image
    description: str


def expect_base(
    checkout: Checkout, image: Image, labels: ImageLabels, reference: str, *, trust: bool, work: Path
) -> ExpectedBase:
    """Return the base that `image`, which messages call `reference`, was built on by its `labels`; raises UserError.

    With `trust`, the lowest layer of the image is the Debian base, which is unpacked in the folder `work`.
    """
    name, digest = labels.base_name, labels.base_digest
    if name.startswith("debian-"):
        if trust:
            base = Base(name, digest, debian_lock.read(checkout), _lowest_layer(image, reference, work), bases.TAG)
            return ExpectedBase(base, bases.image(checkout, base), f"{name}@{digest}, not verified")
        base = bases.make(checkout)
        description = f"{base.name}, {len(base.packages)} packages of {debian_lock.LOCK}, built again here"
    else:
        base = bases.parse(f"{name}@{digest}")
        if trust:
            raise UserError(f"--trust-base: expected a Debian base, found {name}; drop the option, to count its layers")
        description = f"{name}@{digest}, trusted by its digest"
    return ExpectedBase(base, bases.image(checkout, base), description)


def _lowest_layer(image: Image, reference: str, work: Path) -> Path:
    """Return a layout of the base in the folder `work` that has the lowest layer of `image`."""
    if not image.manifest.layers:
        raise UserError(f"{reference}: expected a base, found no layers; do not trust this image")
    layer, tree = image.manifest.layers[0], work / "base.tar"
    image.layout.verify_blob(layer)
    with image.layout.blob(layer.digest).open("rb") as file, tree.open("wb") as out:
        source = decompress(file, layer.media_type, f"layer 1 of {reference}")
        while chunk := source.read(_CHUNK):
            if out.tell() > _MOST:
                raise UserError(f"{reference}: expected a base of at most {size(_MOST)}, found more; do not trust this image")
            out.write(chunk)
    bases.write(tree, work / "base")
    tree.unlink()
    return work / "base"
