"""Files on disk, complete or absent: atomic writes, exclusive use of a folder, free space and resumable downloads.

    >>> from smokehouse.storage import exclusive, fetch, files, require_free_space
    >>> files.write(path, text)

`files` has the functions for single files. Nothing here depends on what the files contain.
"""

from typing import TYPE_CHECKING

from smokehouse.storage.disk import require_free_space
from smokehouse.storage.folder_lock import exclusive

if TYPE_CHECKING:
    from smokehouse.storage.download import Download, credentials_of, fetch

__all__ = ["Download", "credentials_of", "exclusive", "fetch", "require_free_space"]


def __getattr__(name: str) -> object:
    """Import `download` when one of its names is first used: ssl and urllib would slow every command down."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smokehouse.storage import download

    return getattr(download, name)
