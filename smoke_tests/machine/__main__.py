"""`python -m smoke_tests.machine`: the findings, for programs that run where nothing else is installed."""

import sys

from smoke_tests.machine.command import main
from smoke_tests.machine.output import keep_output_harmless

if __name__ == "__main__":
    keep_output_harmless()
    sys.exit(main(sys.argv[1:]))
