"""Finish the conda packages, which were just unpacked: conda.py IN OUT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tree


def main(given: Path, out: Path) -> None:
    """Compile the standard library again: bytecode in conda packages is checked against times that unpacking changed."""
    plan = tree.plan(given)
    tree.compile_python(out, [out / tree.PREFIX / "lib" / f"python{plan['python']}"])
    tree.settle(out, plan["epoch"], plan["budget"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
