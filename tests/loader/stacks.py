"""The stacks that the loader is tested on: two environments of the house, and one of a small house of its own here.

What differs between them is what the loader has to know: transformers and DeepSpeed.
"""

from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv
from smokehouse.locks import check

ROOT = Checkout(Path(__file__).parents[2])
HERE = Checkout(Path(__file__).parent)
# By the version of transformers.
STACKS = {"4.49.0": (ROOT, "qwen2.5-vl"), "4.57.6": (HERE, "transformers-4.57"), "5.23.0": (ROOT, "qwen2.5-vl-latest")}


def python(stack: str) -> Path:
    """The Python of a stack; installs it where it is not."""
    house, name = STACKS[stack]
    return virtualenv.ensure(house, check.load(house, name))
