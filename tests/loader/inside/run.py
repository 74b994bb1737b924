"""Runs the tests of this folder inside a stack: `STACK/bin/python run.py SRC TOOLS [pytest options]`.

SRC has the loader. TOOLS, the site-packages with pytest and hypothesis, comes last: what the stack has of its own wins.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).parent
    source, tools, *options = sys.argv[1:]
    sys.path[:0] = [source, str(here)]
    sys.path.append(tools)
    # What plugins the tools have is none of the stack's business.
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
