"""Free disk space, checked before it is needed."""

import shutil
from pathlib import Path

from smokehouse.errors import UserError


def require_free_space(folder: Path, need: float, purpose: str) -> None:
    """Raise UserError when the disk of `folder` has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(f"{folder}: {_human(free)} free, {_human(need)} needed to {purpose}; free some space")


def _human(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
