"""git, which says which commit a folder has."""

import os
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import run

_DEADLINE = 60.0  # seconds


def commit_of(folder: Path) -> tuple[str, bool]:
    """Return the commit of the working tree that has `folder`, and whether files differ from it; "" where git knows none."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    output = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."]):
        try:
            ended = run(["git", *command], deadline=_DEADLINE, environ=environ, cwd=folder)
        except (OSError, UserError):  # not installed, or a repository that git does not finish with
            return "", False
        if ended.code:
            return "", False
        output.append(ended.stdout.strip())
    return output[0], bool(output[1])
