"""The machine: what training here needs, found before anything is started. `smoke`, both doctors and cluster jobs share it.

    >>> from smoke_tests import machine
    >>> machine.findings(machine.Situation(device="cuda", ranks=8))
    [Finding(level='fail', what='64 MiB free, …', where='/dev/shm', fix='start with --shm-size 2g'), …]

Nothing here starts CUDA in the process that asks, and only the question for which GPUs torch has kernels imports torch. See
`python -m smoke_tests preflight --help`; the doctors run the same as `python -m smoke_tests.machine`, which needs nothing but
Python.
"""

from smoke_tests.machine.finding import Finding
from smoke_tests.machine.gpus import Gpu, Visible, visible_gpus
from smoke_tests.machine.situation import Situation, findings

__all__ = ["Finding", "Gpu", "Situation", "Visible", "findings", "visible_gpus"]
