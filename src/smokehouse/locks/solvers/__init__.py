"""Solvers: what a package index and a conda channel answer."""
