"""Images: built from locks by BuildKit, from verified inputs, so that the same lock gives the same digest.

    >>> from smokehouse.images import ImageRequest, build_image, prepare_image
    >>> prepared = prepare_image(checkout, locked, ImageRequest(flavour="devel"))
    >>> build_image(checkout, prepared, "oci:layout").digest

An `ImageSpec` is what an image is built from, `ImageLabels` what it says of itself, and `open_image` yields one to verify.
`labelled_wheels` reads those of --with in labels, `base` and `debian_lock` the Debian below, `contexts` what enters a build.
"""

from typing import TYPE_CHECKING

from smokehouse.lazy import names_of

if TYPE_CHECKING:
    from smokehouse.images.build import ImageRequest, build_image, prepare_image
    from smokehouse.images.fetch import open_image
    from smokehouse.images.labels import ImageLabels
    from smokehouse.images.spec import ImageSpec

__all__ = ["ImageLabels", "ImageRequest", "ImageSpec", "build_image", "open_image", "prepare_image"]

# The module of each name, imported when it is first used: pydantic and rattler would slow every command down.
__getattr__ = names_of(
    __name__,
    {
        "ImageLabels": "labels",
        "ImageRequest": "build",
        "ImageSpec": "spec",
        "build_image": "build",
        "open_image": "fetch",
        "prepare_image": "build",
    },
)
