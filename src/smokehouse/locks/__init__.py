"""Locks: an environment resolved to one file and hash for each package.

    >>> locked = locks.load(checkout, "qwen2.5-vl")
    >>> locked.lock.conda, locked.lock.pip  # every artefact
    >>> locked.files, locked.digest  # the files of the lock, and the SHA-256 of lock.json

`lock_all` resolves, and reports which locks are out of date. Reading a lock imports no solver: rattler, conda-lock and
uv are imported when something is resolved.
"""

from smokehouse.locks.check import LockedEnvironment, load
from smokehouse.locks.model import LOCK_JSON, CondaPackage, Lock, LockedFile
from smokehouse.locks.pins import LockFiles

__all__ = ["LOCK_JSON", "CondaPackage", "Lock", "LockFiles", "LockedEnvironment", "LockedFile", "load"]
