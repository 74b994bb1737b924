"""The smoke tests: run inside an environment, prove it, and leave a report. `python -m smoke_tests --help`."""

import importlib.util
import sys
from pathlib import Path

_LOADER = Path(__file__).parents[1] / "src" / "smokehouse_loader"

# In a checkout the loader lies in src/, which is on no path here: the builder lies there too, and is none of ours. In an image
# both packages lie side by side.
if _LOADER.is_dir() and "smokehouse_loader" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_LOADER.name, _LOADER / "__init__.py")
    assert _spec
    assert _spec.loader
    sys.modules[_LOADER.name] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
