"""Finish the conda packages, which have just been unpacked: conda.py CONTEXT OUT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tree


def main(context: Path, out: Path) -> None:
    """Compile the standard library again: the bytecode in conda packages is checked against times that have changed."""
    plan = tree.plan(context)
    tree.compile_python(out, [out / tree.PREFIX / "lib" / f"python{plan['python']}"])
    tree.normalize(out, plan["epoch"], plan["budget"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
