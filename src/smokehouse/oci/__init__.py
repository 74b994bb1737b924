"""OCI images: their documents, references, layouts, file systems and registries; a format library.

    >>> from smokehouse.oci import Layout, Reference, Registry
    >>> Registry(Reference.parse("ghcr.io/owner/name:tag")).pull(Layout(folder))
    >>> Layout(folder).image().labels

It knows nothing of environments and locks. `model` has the media types and documents.

See: https://github.com/opencontainers/image-spec, https://github.com/opencontainers/distribution-spec
"""

from typing import TYPE_CHECKING

from smokehouse.lazy import names_of

if TYPE_CHECKING:
    from smokehouse.oci.layout import Image, Layout
    from smokehouse.oci.model import Descriptor
    from smokehouse.oci.reference import Reference
    from smokehouse.oci.registry import Registry

__all__ = ["Descriptor", "Image", "Layout", "Reference", "Registry"]

# The module of each name, imported when it is first used: pydantic, requests and zstandard would slow every command down.
__getattr__ = names_of(
    __name__,
    {
        "Descriptor": "model",
        "Image": "layout",
        "Layout": "layout",
        "Reference": "reference",
        "Registry": "registry",
    },
)
