"""The smoke tests: they run inside an environment, prove it, and leave a report. See `python -m smoke_tests --help`."""

import importlib.util
import sys
from pathlib import Path

_LOADER = Path(__file__).parents[1] / "src" / "smokehouse_loader"

# In a checkout the loader is in src/, which stays off the path because the builder is there too. In an image both packages are
# side by side.
if _LOADER.is_dir() and "smokehouse_loader" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_LOADER.name, _LOADER / "__init__.py")
    if _spec is None or _spec.loader is None:
        raise ImportError(f"{_LOADER}: expected a package, found none")
    sys.modules[_LOADER.name] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
