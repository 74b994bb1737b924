"""The smoke tests: they run inside an environment, prove it, and leave a report. See `python -m smoke_tests --help`."""

import importlib.util
import sys
from pathlib import Path

# The project of smokehouse-loader, in a checkout and in an installed package; src/ stays off the path, because the builder is
# there. An image has the installed loader only.
_PROJECT = Path(__file__).parents[1] / "packages" / "smokehouse-loader"


def _has_this_loader() -> bool:
    """Return whether the environment has the loader of this checkout: the tests fit no other one."""
    spec = importlib.util.find_spec("smokehouse_loader")
    if spec is None or spec.origin is None:
        return False
    pairs = [(file, Path(spec.origin).with_name(file.name)) for file in (_PROJECT / "smokehouse_loader").glob("[!.]*.*")]
    return all(installed.is_file() and installed.read_bytes() == file.read_bytes() for file, installed in pairs)


if _PROJECT.is_dir() and not _has_this_loader():
    sys.path.insert(0, str(_PROJECT))
