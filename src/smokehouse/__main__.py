"""`python -m smokehouse` is the `smokehouse` console script."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - only an installation reads pyproject.toml
    found = f"{sys.version_info.major}.{sys.version_info.minor} ({sys.executable})"
    print(f"smokehouse: expected Python 3.11 or later, found {found}; start it with python3.11", file=sys.stderr)
    sys.exit(2)

from smokehouse.cli import main

sys.exit(main())
