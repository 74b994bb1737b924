"""Installs: put a lock on a machine, from an index and a channel or from a bundle.

    >>> from smokehouse.installs import bundle, bundler, loader, prefix, virtualenv
    >>> prefix.install(checkout, locked, folder)  # everything: conda packages, PyPI packages, the loader
    >>> virtualenv.ensure(checkout, locked)  # the PyPI packages and the loader, for a Python of this machine
    >>> bundler.make(locked, folder)  # what both need without a network; bundle.read opens it
    >>> loader.build(checkout, folder)  # the wheel of smokehouse-loader, which no lock lists

Every file is verified by its hash in the lock, and an installation is complete or absent.
"""

from smokehouse.installs.additions import Additions
from smokehouse.installs.bundle import Bundle

__all__ = ["Additions", "Bundle", "bundle", "bundler", "loader", "prefix", "virtualenv"]
