"""Check free disk space before it is used."""

import shutil
from pathlib import Path

from smokehouse.console import size
from smokehouse.errors import UserError


def require_free_space(folder: Path, need: float, purpose: str) -> None:
    """Raise UserError when the disk of `folder` has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: expected {size(need)} of free disk space to {purpose}, found {size(free)}; free some disk space"
        )
