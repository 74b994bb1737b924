"""Reports of smoke tests that were never run."""

import json
import os
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from smokehouse.storage.files import hashed


def report(digest: str, locked: str, **changes: Any) -> dict[str, Any]:
    """A report of a passed run in the image `digest` of the lock.json `locked`; what is None in `changes` is left out."""
    made = {
        "environment": "tiny",
        "lock": {"requirements.txt": "0" * 64, "lock.json": locked},
        "image": digest,
        "device": "cpu",
        "backend": "gloo",
        "precision": "fp32",
        "world_size": 2,
        "versions": {"torch": "2.6.0+cu124"},
        "machine": {"architecture": "x86_64", "cpu": "A CPU", "cpus": 2, "memory_bytes": 8_000_000_000},
        "checkpoint": "made",
        "started": "2026-11-22T05:00:00+00:00",
        "seconds": 12.5,
        "verdict": "passed",
        "failure": "",
        "not_run": [],
        "checks": [
            check("load", "check", 3),
            check("mixed modality", "check", 2, "known-issue"),
            check("flipped bit", "control"),
        ],
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def complete(root: Path, checkout: Path, digest: str, name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A report with all that the plan in `root` makes for an environment of `checkout`, of a run in an image an hour ago."""
    folder = checkout / "lockfiles" / name
    locked = json.loads((folder / "lock.json").read_text())
    [python] = [package["version"] for package in locked["conda"] if package["name"] == "python"]
    stack = tomllib.loads((checkout / "environments" / name / "stack.toml").read_text())
    versions: dict[str, str | None] = {package["name"]: package["version"] for package in locked["pip"]}
    versions = {package: versions[package] for package in ("torch", "transformers", "deepspeed") if package in versions}
    shared = root / "environments" / "stacks" / stack["stack"] / "stack.toml" if "stack" in stack else None
    cuda = (tomllib.loads(shared.read_text()) if shared else stack)["cuda"]["version"]
    versions |= {"python": python, "cuda": cuda if "torch" in versions else None}
    legs = [{"name": "gloo x2", "backend": "gloo", "world_size": 2, "gpus": 0}]
    request = {
        "device": "cpu",
        "legs": legs,
        "expectations": stack.get("expectations", {}),
        "versions": {name: version for name, version in versions.items() if name in ("torch", "transformers", "deepspeed")},
        "family": stack["model"]["family"],
    }
    ended = subprocess.run(
        [sys.executable, "-m", "smoke_tests.expected"],
        input=json.dumps(request),
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    checks = []
    for planned in json.loads(ended.stdout)["checks"]:
        verdict = "known-issue" if planned["known_issue"] else "passed"
        made = check(planned["name"], planned["kind"], planned["zero_stage"], verdict)
        checks.append(made | {"ranks": [made["ranks"][0] | {"rank": rank} for rank in range(planned["ranks"])]})
    return report(
        digest,
        hashed(folder / "lock.json"),
        lock={**locked["files"], "lock.json": hashed(folder / "lock.json")},
        legs=legs,
        environment=name,
        versions=versions,
        started=(datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds"),
        checks=checks,
        **changes,
    )


def check(name: str, kind: str, stage: int | None = None, verdict: str = "passed") -> dict[str, Any]:
    """One check of a report."""
    ranks = [{"rank": 0, "verdict": verdict, "detail": "seen"}]
    return {
        "name": name,
        "zero_stage": stage,
        "kind": kind,
        "verdict": verdict,
        "seconds": 1.0,
        "ranks": ranks,
        "detail": "seen",
    }
