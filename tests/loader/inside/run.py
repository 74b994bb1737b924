"""Run the tests of this directory inside a stack: `STACK/bin/python run.py SRC TOOLS [pytest options]`.

SRC contains the loader, TOOLS pytest and hypothesis; TOOLS comes last on the path, so that packages of the stack win.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).parent
    source, tools, *options = sys.argv[1:]
    sys.path[:0] = [source, str(here)]
    # The checkout, for the stub libraries of NVML and CUDA.
    sys.path.append(str(here.parents[2]))
    sys.path.append(tools)
    # Plugins of the tools must not run inside the stack.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    common = [
        "-c",
        os.devnull,
        f"--rootdir={here}",
        f"--confcutdir={here}",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    ]
    sys.exit(pytest.main([*common, "-q", "-W", "ignore::DeprecationWarning", str(here), *options]))
