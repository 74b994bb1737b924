"""The smoke tests: they run inside an environment, prove it, and leave a report. See `python -m smoke_tests --help`."""

import sys
from pathlib import Path

# The project of smokehouse-loader, in a checkout and in an installed package; src/ stays off the path, because the builder is
# there. It comes last: an environment has the loader installed, and that one is tested. An image has no other.
_LOADER = Path(__file__).parents[1] / "packages" / "smokehouse-loader"
if _LOADER.is_dir():
    sys.path.append(str(_LOADER))
