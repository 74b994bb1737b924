"""Paths inside an image."""

from pathlib import Path

from smokehouse.installs import site_files

PREFIX = Path("/opt/env")
# The folder of Smokehouse's files whose content goes to site-packages, and which files are programs.
SITE_FILES = "site"
PROGRAMS = ("describe", "doctor", "entrypoint", "smoke", "tini", f"{SITE_FILES}/{site_files.EXECUTABLE}")
