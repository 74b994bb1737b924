"""What the supervisor tells a rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoke_tests.plan import Job
from smoke_tests.workspace import Workspace


@dataclass(frozen=True)
class Brief:
    """All that a rank is told, picklable, so that it crosses a process border."""

    job: Job
    address: str  # of the supervisor's listener
    device: str  # cpu | cuda
    precision: str  # fp32 | bf16, of the main runs
    timeout: float  # seconds
    port: int  # of the rendezvous, 0 for any
    source: Path  # the checkpoint under test
    workspace: Workspace
    logs: Path
    lock: Path | None  # None for a run without one
    stack: dict[str, Any]  # stack.toml
