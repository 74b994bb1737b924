"""What the supervisor tells a rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoke_tests.plan import Job, Step
from smoke_tests.workspace import Workspace


@dataclass(frozen=True)
class Brief:
    """All that a rank is told, picklable, so that it crosses a process border."""

    job: Job
    address: str  # of the supervisor's listener
    device: str  # cpu | cuda
    precision: str  # fp32 | bf16, of the main runs
    timeout: float  # seconds that a step may take
    port: int  # of the rendezvous, 0 for any
    source: Path  # the checkpoint under test
    workspace: Workspace
    logs: Path
    lock: Path | None  # None for a run without one
    stack: dict[str, Any]  # stack.toml
    image: str | None = None  # digest of the image that this process is in
    node: int = 0  # that this process is on
    nodes: int = 1
    host: str = "127.0.0.1"  # of this node, as the others reach it
    network: str = ""  # that NCCL is to take between nodes; empty for any
    rendezvous: str = ""  # host and port of the first node's c10d store; empty on one node
    requested_timeout: bool = False  # the user set it: no step has more

    def limit(self, step: Step) -> float:
        """Return the seconds that a step may take."""
        return self.timeout if self.requested_timeout else max(self.timeout, step.deadline)

    @property
    def nodes_of_job(self) -> int:
        """The number of nodes that the job runs on."""
        return (self.job.nodes or self.nodes) if self.job.distributed else 1
