"""The stacks that the loader is tested on: two environments of this checkout, and one that only these tests need.

They differ in what matters to the loader, the versions of transformers and DeepSpeed. The third one is defined and locked in
this directory, which is a checkout of its own.
"""

from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv

ROOT = Checkout(Path(__file__).parents[2])
HERE = Checkout(Path(__file__).parent)
# Version of transformers -> checkout and environment.
STACKS = {"4.49.0": (ROOT, "qwen2.5-vl"), "4.57.6": (HERE, "transformers-4.57"), "5.23.0": (ROOT, "qwen2.5-vl-latest")}


def python(stack: str) -> Path:
    """Return the Python of a stack; install the stack if needed."""
    checkout, name = STACKS[stack]
    return virtualenv.ensure(checkout, locks.load(checkout, name))
