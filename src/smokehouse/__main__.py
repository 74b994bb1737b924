"""`python -m smokehouse` is the `smokehouse` console script."""

import sys

from smokehouse.cli import main

sys.exit(main())
