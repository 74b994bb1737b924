"""Records of vulnerabilities that do not exist, written for tests."""

import json
from pathlib import Path
from typing import Any

from smokehouse.audits.model import Package

TORCH = Package("PyPI", "torch", "2.6.0+cu124", "torch", "2.6.0+cu124")
BSDUTILS = Package("Debian", "bsdutils", "1:2.38.1-5+deb12u3", "util-linux", "2.38.1-5+deb12u3")


def osv(name: str, package: str, *events: dict[str, str], **changes: Any) -> dict[str, Any]:
    """An OSV record of a PyPI package with one range, none without `events`."""
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": package}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": [*events]}]
    return {"schema_version": "1.6.0", "id": name, "summary": f"About {package}", "affected": [affected], **changes}


def tracker(source: str, name: str, **release: Any) -> dict[str, Any]:
    """Records of Debian's tracker with one issue of one source package in bookworm."""
    return {source: {name: {"description": f"About {source}", "scope": "local", "releases": {"bookworm": release}}}}


OF_OTHERS = tracker("of-no-base", "CVE-2026-9", status="open")  # records that are whole, and about nothing that is locked


def database(folder: Path, records: list[dict[str, Any]], issues: dict[str, Any] | None = None) -> Path:
    """A database in a folder, with issues of the tracker unless they are None."""
    (folder / "PyPI").mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        (folder / "PyPI" / f"{number}.json").write_text(json.dumps(record))
    if issues is not None:
        (folder / "debian.json").write_text(json.dumps(issues))
    return folder
