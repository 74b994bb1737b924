"""Images of somebody else: without our labels, entrypoint and variables, the smoke test of this checkout runs in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ...unit.conftest import TestCheckout
from ..engine import Engine

PYTHON = "/opt/env/bin/python"


@pytest.fixture
def theirs(image: str, engine: Engine, tmp_path: Path) -> Iterator[str]:
    """An image that has nothing of ours but files: exported and imported, it has no configuration.

    Its tag is of this test alone, as the engine may be the machine's.
    """
    container = engine.docker("create", image).stdout.strip()
    archive, tag = tmp_path / "exported.tar", f"theirs:{container[:12]}"
    try:
        engine.docker("export", "--output", str(archive), container)
        engine.docker("import", str(archive), tag)
    finally:
        engine.docker("rm", container)
        archive.unlink(missing_ok=True)
    yield tag
    engine.docker("rmi", "--force", tag)


def test_what_the_image_lacks_is_named(
    image_checkout: TestCheckout, theirs: str, engine: Engine, root: Path, tmp_path: Path
) -> None:
    """Its Python runs the smoke test of this checkout, which finds no torch there; an image of ours needs a label for that."""
    assert engine.docker("inspect", "--format", "{{.Config.Labels}}", theirs).stdout.strip() in ("map[]", "<no value>")
    checkout, report = TestCheckout(root, image_checkout.environ), tmp_path / "report"
    said = checkout.run("smoke", "--here", "--image", theirs, "--python", PYTHON, "--report", str(report))
    assert said.returncode == 2
    assert "/opt/env: expected torch, transformers, deepspeed, " in said.stderr
    assert "found no torch, transformers, deepspeed, " in said.stderr
    assert "not an image of Smokehouse" in image_checkout.refused("smoke", "--image", theirs)
