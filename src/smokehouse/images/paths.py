"""Paths inside an image."""

from pathlib import Path

PREFIX = Path("/opt/env")
PROGRAMS = ("describe", "doctor", "entrypoint", "smoke", "tini")

ENV = str(PREFIX).removeprefix("/")
SMOKEHOUSE = "opt/smokehouse"
FILES_JSON = f"{SMOKEHOUSE}/files.json"
INSTALLER = b"smokehouse\n"
