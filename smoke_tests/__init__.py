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
    ours, theirs = _PROJECT / "smokehouse_loader", Path(spec.origin).parent
    files = [path.relative_to(ours) for folder in (ours, *ours.glob("[!_.]*/")) for path in folder.glob("[!.]*.*")]
    return all((theirs / file).is_file() and (theirs / file).read_bytes() == (ours / file).read_bytes() for file in files)


if _PROJECT.is_dir() and not _has_this_loader():
    sys.path.insert(0, str(_PROJECT))
