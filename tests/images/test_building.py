"""Building images: from a small lock, on a real base, by a real engine."""

import json
from pathlib import Path

from ..builder.conftest import TestHouse
from .engine import Engine


def built(house: TestHouse, *options: str) -> dict[str, object]:
    """Build tiny, which must succeed; what was built."""
    ended = house.run("build", "tiny", "--json", *options)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def test_an_image_says_what_it_is(tiny: TestHouse, engine: Engine) -> None:
    image = built(tiny)
    said = engine.docker("run", "--rm", "--network", "none", str(image["place"])).stdout
    assert said.startswith("Smokehouse tiny (runtime)\n")
