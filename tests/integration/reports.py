"""Reports of smoke tests that were never run."""

from typing import Any


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
