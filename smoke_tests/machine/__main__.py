"""`python -m smoke_tests.machine`: the findings, for programs that run where nothing else is installed."""

import sys

from smoke_tests.machine.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
