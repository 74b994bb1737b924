"""The extra wheels that the labels of an image list."""

from collections.abc import Sequence
from dataclasses import replace

from smokehouse.errors import UserError
from smokehouse.images.labels import EXTRA_WHEELS, ImageLabels
from smokehouse.installs.extra_wheels import ExtraWheel, parse


def from_labels(labels: ImageLabels, requested: Sequence[ExtraWheel], image: str) -> tuple[ExtraWheel, ...]:
    """Return the extra wheels of `image`, each from `requested` if it is there; raises UserError.

    What the image's builder had as a file must be in `requested`; the rest can be downloaded from the URL in the label.
    """
    unused = {wheel.sha256: wheel for wheel in requested}
    found = []
    for text in labels.extra_wheels:
        try:
            wheel = parse(text)
        except UserError as error:
            raise UserError(f"{image}: invalid label {EXTRA_WHEELS}: {error}") from None
        if match := unused.pop(wheel.sha256, None):
            wheel = replace(wheel, source=match.source)
        elif not wheel.url:
            raise UserError(f"{image}: requires {wheel.name}, which has no URL; pass --with FILE#sha256={wheel.sha256}")
        found.append(wheel)
    for wheel in unused.values():
        raise UserError(f"--with {wheel.name}: SHA-256 not found in the labels of {image}; drop the option")
    return tuple(found)
