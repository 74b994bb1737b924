"""The command line: verbs, their options, and everything that is printed for a person.

`main` has the table of verbs; each module has the verbs of one noun.
"""

from smokehouse.cli.main import app, main

__all__ = ["app", "main"]
