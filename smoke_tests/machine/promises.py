"""Whether a job sees as many GPUs as it was given."""

import os
from collections.abc import Iterator

from smoke_tests.machine.finding import Finding, ok

_OF_SLURM = "SLURM_GPUS_ON_NODE"


def check(seen: int, promised: int | None) -> Iterator[Finding]:
    """Yield whether `seen` GPUs are as many as were `promised`, by default as Slurm says; nothing where nobody did."""
    source = "--gpus"
    if promised is None and os.environ.get(_OF_SLURM, "").isdecimal():
        promised, source = int(os.environ[_OF_SLURM]), _OF_SLURM
    if promised is None:
        return
    if seen < promised:
        fix = "look for Xid 79 in the kernel's log and for CUDA_VISIBLE_DEVICES, and take the machine out of service"
        yield Finding("fail", f"{promised} were promised ({source}), {seen} are visible", "GPUs", fix)
    else:
        yield ok("GPUs", f"{promised} were promised ({source})")
