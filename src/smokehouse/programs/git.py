"""git, which says which commit a folder has."""

import os
from collections.abc import Sequence
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import run

_DEADLINE = 60.0  # seconds


def commit_of(folder: Path) -> tuple[str, bool]:
    """Return the commit of the working tree that has `folder`, and whether files differ from it; "" where git knows none."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".") if commit else None
    return ("", False) if not commit or changed is None else (commit, bool(changed))


def last_commit(folder: Path, paths: Sequence[str]) -> str:
    """Return the commit that last changed `paths` of the working tree `folder`; "" where they differ from it, or none has."""
    commit = _git(folder, "rev-list", "-1", "HEAD", "--", *paths)
    return commit if commit and _git(folder, "status", "--porcelain", "--", *paths) == "" else ""


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None where it fails, is not installed, or does not finish with a repository."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        ended = run(["git", *arguments], deadline=_DEADLINE, environ=environ, cwd=folder)
    except (OSError, UserError):
        return None
    return None if ended.code else ended.stdout.strip()
