"""The stacks that the loader is tested on: two environments of this checkout, and one that only these tests need.

They differ in what matters to the loader, the versions of transformers and DeepSpeed. The third one is defined and locked in
this directory, which is a checkout of its own.
"""

from pathlib import Path

from smokehouse import environment, installation
from smokehouse.house import House

ROOT = House(Path(__file__).parents[2])
HERE = House(Path(__file__).parent)
# Version of transformers -> checkout and environment.
STACKS = {"4.49.0": (ROOT, "qwen2.5-vl"), "4.57.6": (HERE, "transformers-4.57"), "5.23.0": (ROOT, "qwen2.5-vl-latest")}


def python(stack: str) -> Path:
    """Return the Python of a stack; install the stack if needed."""
    house, name = STACKS[stack]
    return installation.ensure(house, environment.read(house, name))
