"""Installs: put a lock on a machine, from an index and a channel or from a bundle.

    >>> from smokehouse.installs import bundle, bundler, prefix, virtualenv
    >>> prefix.install(locked, folder)  # everything: conda packages and PyPI packages
    >>> virtualenv.ensure(checkout, locked)  # the PyPI packages, for a Python of this machine
    >>> bundler.make(locked, folder)  # what both need without a network; bundle.read opens it

Every file is verified by its hash in the lock, and an installation is complete or absent.
"""

from smokehouse.installs.additions import Additions
from smokehouse.installs.bundle import Bundle

__all__ = ["Additions", "Bundle", "bundle", "bundler", "prefix", "virtualenv"]
