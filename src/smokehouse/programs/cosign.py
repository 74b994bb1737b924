"""cosign, which signs and verifies statements."""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_SIGNING = 300.0  # seconds; keyless asks three services


def run_cosign(arguments: Sequence[str]) -> Ended:
    program = shutil.which("cosign")
    if not program:
        raise UserError("cosign is not here, which signs and checks statements; install it (Debian 13 has it)")
    # Without a terminal it would wait for a password that nobody types.
    environ = {"COSIGN_PASSWORD": "", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        return run([program, *arguments], deadline=_SIGNING, environ=environ, cwd=Path(folder))


def explain(ended: Ended) -> str:
    lines = [line for line in ended.stderr.splitlines() if line and not line.startswith(("WARNING", "Using payload"))]
    said = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "cosign gave no reason")
    if "decrypt" in said:
        return "the key's password is not COSIGN_PASSWORD"
    return " ".join(re.sub(r"^(?:Error: |error during command execution: |signing /\S+: )+", "", said).split())[:300]
