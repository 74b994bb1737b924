"""Proofs: whether an image is what its lock builds, what was proven of it, and how both are published.

    >>> from smokehouse.proofs import PublishOptions, VerifyOptions, publish_image, verify_reference
    >>> from smokehouse.images import ImageRequest
    >>> verify_reference(checkout, "oci:folder", VerifyOptions()).differences
    >>> publish_image(checkout, "qwen2.5-vl", "ghcr.io/owner/name", PublishOptions(ImageRequest(), key)).references

A lock decides what an image has to be: everything is made again and compared by hash. What a smoke test proved is a
statement that is signed and attached to the image.
"""

from typing import TYPE_CHECKING

from smokehouse.lazy import names_of

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
__getattr__ = names_of(
    __name__,
    {
        "Difference": "compare",
        "Publication": "publish",
        "PublishOptions": "publish",
        "Signer": "signing",
        "Verification": "compare",
        "VerifyOptions": "verify",
        "publish_image": "publish",
        "verify_image": "verify",
        "verify_reference": "verify",
    },
)
