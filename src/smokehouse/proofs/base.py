"""The base that an image is compared with: Debian as docker/base.lock says, or what whoever verifies names by its digest.

The image is never asked: what it says of its base is compared with that.
"""

from dataclasses import replace
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import size
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import debian_lock
from smokehouse.images.base import Base
from smokehouse.images.labels import ImageLabels
from smokehouse.oci.blobs import unpack
from smokehouse.oci.layout import Image, Layout

_MOST = 4 << 30  # bytes of the lowest layer, unpacked; Debian has 0.6 GB
_DEBIAN = "debian-"  # begins the name of a base of docker/base.lock, which is in no registry


def base_problem(checkout: Checkout, labels: ImageLabels, requested: str | None) -> str:
    """Return how the base in `labels` differs from the `requested` one, empty if it does not; nothing is fetched.

    Without a request it has to be a Debian base, which is then compared by its layer. Raises UserError where the request is
    not REF@sha256:….
    """
    said = f"{labels.base_name}@{labels.base_digest}"
    if requested:
        bases.parse(requested)
        return "" if said == requested else f"expected {requested}, as --base specifies, found {said}; drop the option"
    debian = f"{_DEBIAN}{debian_lock.read_definition(checkout).suite}"
    if labels.base_name == debian:
        return ""
    try:
        bases.parse(said)
    except UserError:
        return f"expected {debian}, found {said}; do not trust this image"
    return f"expected {debian}, found {said}; if you trust that base, allow it with --base {said}"


def expect_base(checkout: Checkout, image: Image, reference: str, requested: str | None, work: Path) -> tuple[Base, str]:
    """Return the base to compare `image`, which messages call `reference`, with, and how it is trusted; raises UserError.

    A Debian base that is `requested` is not built again: the lowest layer of the image is taken if its digest is the same. It
    is unpacked in the folder `work`.
    """
    if not requested:
        base = bases.make(checkout)
        text = f"{base.name}@{base.digest}, {len(base.packages)} packages of {debian_lock.LOCK}, built again here"
    elif requested.startswith(_DEBIAN):
        named = bases.parse(requested)
        layout = _lowest_layer(image, reference, work)
        if (found := Layout(layout).image().digest) != named.digest:
            raise UserError(f"{reference}: expected the base {requested} as its lowest layer, found {found}; do not trust it")
        base = replace(named, packages=debian_lock.read(checkout), layout=layout)
        text = f"{requested}, which is the lowest layer of the image, by its digest in --base"
    else:
        base = bases.parse(requested)
        text = f"{requested}, trusted by its digest in --base"
    return base, text


def _lowest_layer(image: Image, reference: str, work: Path) -> Path:
    """Return a layout of the base in the folder `work` that has the lowest layer of `image`."""
    if not image.manifest.layers:
        raise UserError(f"{reference}: expected a base, found no layers; do not trust this image")
    layer, tree = image.manifest.layers[0], work / "base.tar"
    image.layout.verify_blob(layer)
    with tree.open("wb") as out:
        for chunk in unpack(image.layout.blob(layer.digest), layer.media_type, _MOST, f"layer 1 of {reference}"):
            if out.tell() + len(chunk) > _MOST:
                raise UserError(f"{reference}: expected a base of at most {size(_MOST)}, found more; do not trust this image")
            out.write(chunk)
    bases.write(tree, work / "base")
    tree.unlink()
    return work / "base"
