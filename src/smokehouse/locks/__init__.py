"""Locks: an environment resolved to one file and hash per package, written, read and compared."""
