"""The stacks that the loader is tested on: `python tests/loader/stacks.py` locks those that are no environment of the house.

torch is 2.6.0 in all: what differs between them is what the loader has to know, transformers and DeepSpeed.
"""

import datetime
import sys
from pathlib import Path

from smokehouse import environment, installation, lock
from smokehouse.environment import Environment
from smokehouse.house import House
from smokehouse.inputs import Inputs
from smokehouse.requirement import parse

ROOT = Path(__file__).parents[2]
HERE = House(Path(__file__).parent)
ENVIRONMENTS = {"4.49.0": "qwen2.5-vl"}  # by the version of transformers; TRL comes from here
ASKED = {
    "4.57.6": ("transformers==4.57.6", "deepspeed==0.17.6"),
    "5.23.0": ("transformers==5.23.0", "deepspeed==0.19.8"),
}
STACKS = (*ENVIRONMENTS, *ASKED)


def inputs(stack: str) -> Inputs:
    """What is asked for of a stack that is no environment."""
    names = ("torch==2.6.0", *ASKED[stack], "accelerate", "numpy")
    return Inputs(
        file="stacks.py",
        requirements=tuple(parse(name) for name in names),
        python="3.11",
        platform="x86_64-manylinux_2_28",
        cutoff=datetime.date(2026, 11, 20),
        left_out=(),
    )


def lock_files(stack: str) -> lock.LockFiles:
    """Where the lock of such a stack lies."""
    folder = HERE.lock(stack)
    name = f"tests/loader/lockfiles/{stack}/{lock.PINS}"
    return lock.LockFiles(folder / lock.PINS, folder / lock.BUILD_PINS, name, "python tests/loader/stacks.py")


def python(stack: str) -> Path:
    """The Python of a stack; installs it where it is not."""
    if stack in ENVIRONMENTS:
        house = House(ROOT)
        return installation.ensure(house, environment.read(house, ENVIRONMENTS[stack]))
    return installation.ensure(HERE, Environment(stack, None, inputs(stack)))  # type: ignore[arg-type]


if __name__ == "__main__":
    for name in sys.argv[1:] or ASKED:
        print(name, "written" if lock.make(inputs(name), lock_files(name)) else "unchanged")
