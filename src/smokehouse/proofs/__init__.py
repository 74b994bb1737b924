"""Proofs: whether an image is what its lock builds, what was proven of it, and how both are published.

    >>> from smokehouse.proofs import PublishOptions, VerifyOptions, publish_image, verify_reference
    >>> from smokehouse.images import ImageRequest
    >>> verify_reference(checkout, "oci:folder", VerifyOptions()).differences
    >>> publish_image(checkout, "qwen2.5-vl", "ghcr.io/owner/name", PublishOptions(ImageRequest(), key)).references

A lock decides what an image has to be: everything is made again and compared by hash. What a smoke test proved is a
statement that is signed and attached to the image.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smokehouse.proofs.compare import Difference, Verification
    from smokehouse.proofs.publish import Publication, PublishOptions, publish_image
    from smokehouse.proofs.signing import Signer
    from smokehouse.proofs.verify import VerifyOptions, verify_image, verify_reference

__all__ = [
    "Difference",
    "Publication",
    "PublishOptions",
    "Signer",
    "Verification",
    "VerifyOptions",
    "publish_image",
    "verify_image",
    "verify_reference",
]

# The module of each name, imported when it is first used: they import the installers and the solver's library.
_MODULES = {
    "Difference": "compare",
    "Publication": "publish",
    "PublishOptions": "publish",
    "Signer": "signing",
    "Verification": "compare",
    "VerifyOptions": "verify",
    "publish_image": "publish",
    "verify_image": "verify",
    "verify_reference": "verify",
}


def __getattr__(name: str) -> object:
    """Import the module of a name of `__all__`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
