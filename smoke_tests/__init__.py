"""The smoke tests: run inside an environment, prove it, and leave a report. `python -m smoke_tests --help`."""
