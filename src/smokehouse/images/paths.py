"""Paths inside an image."""

from pathlib import Path

PREFIX = Path("/opt/env")
PROGRAMS = ("describe", "doctor", "entrypoint", "smoke", "tini")

ENV = str(PREFIX).removeprefix("/")
OURS = "opt/smokehouse"
LISTED = f"{OURS}/files.json"
INSTALLER = b"smokehouse\n"
