"""Whether an image is what its lock builds is told file by file, and each way that it can be another is named."""

import json
from pathlib import Path
from typing import Any

from ..builder.conftest import TestHouse
from .real import run


def verified(house: TestHouse, reference: str, *options: str, code: int = 0) -> dict[str, Any]:
    """The verdict over an image, with the exit code `code`."""
    found: dict[str, Any] = json.loads(run(house, "verify", reference, "--json", *options, code=code).stdout)
    return found


def test_what_a_real_engine_builds_is_what_the_lock_says(tiny: TestHouse, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = json.loads(run(tiny, "build", "tiny", "--json", "--output", f"oci:{layout}").stdout)["digest"]
    verdict = verified(tiny, f"oci:{layout}")
    assert verdict["digest"] == digest
    assert verdict["differences"] == []
    assert verdict["passed"]
