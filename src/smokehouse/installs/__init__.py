"""Installs: a lock put on a machine, from an index or from a bundle."""
