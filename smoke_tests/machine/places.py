"""Where the kernel shows its state. Tests have other folders, so that they can show a machine that is not this one."""

import os
from pathlib import Path


def proc() -> Path:
    """Return /proc, or what SMOKEHOUSE_PROC says."""
    return Path(os.environ.get("SMOKEHOUSE_PROC", "/proc"))


def devices() -> Path:
    """Return /dev, or what SMOKEHOUSE_DEV says."""
    return Path(os.environ.get("SMOKEHOUSE_DEV", "/dev"))


def system() -> Path:
    """Return /sys, or what SMOKEHOUSE_SYS says."""
    return Path(os.environ.get("SMOKEHOUSE_SYS", "/sys"))


def home() -> Path:
    """Return the home folder, / for a user ID without a name where HOME is not set."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
