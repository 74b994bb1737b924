"""Images: built from locks by BuildKit, from verified inputs, so that the same lock gives the same digest.

    >>> from smokehouse.images import ImageRequest, build_image, prepare_image
    >>> prepared = prepare_image(checkout, locked, ImageRequest(flavour="devel"))
    >>> build_image(checkout, prepared, "oci:layout").digest

An `ImageSpec` is what an image is built from, `ImageLabels` what it says of itself, and `open_image` yields one to verify.
`labelled_wheels` reads those of --with in labels, `base` and `debian_lock` the Debian below, `contexts` what enters a build.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smokehouse.images.build import ImageRequest, build_image, prepare_image
    from smokehouse.images.fetch import open_image
    from smokehouse.images.labels import ImageLabels
    from smokehouse.images.spec import ImageSpec

__all__ = ["ImageLabels", "ImageRequest", "ImageSpec", "build_image", "open_image", "prepare_image"]

# The module of each name, imported when it is first used: pydantic and rattler would slow every command down.
_MODULES = {
    "ImageLabels": "labels",
    "ImageRequest": "build",
    "ImageSpec": "spec",
    "build_image": "build",
    "open_image": "fetch",
    "prepare_image": "build",
}


def __getattr__(name: str) -> object:
    """Import the module of a name of `__all__`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
