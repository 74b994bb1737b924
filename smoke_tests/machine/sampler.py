"""The peak of a GPU's memory, which NVML does not keep: a thread asks ten times a second. Nothing here starts CUDA."""

import threading

from smoke_tests.machine import nvml
from smoke_tests.machine.nvml import NvmlError

_INTERVAL = 0.1  # seconds


class PeakMemory:
    """The most bytes that a GPU had in use since `start`, by all processes together: CUDA contexts and NCCL's buffers too."""

    def __init__(self, uuid: str) -> None:
        """Take the GPU with this UUID, as NVML has it."""
        self._uuid = uuid
        self._first = threading.Event()
        self.bytes: int | None = None  # None until the first answer, and where NVML gives none

    def start(self) -> "PeakMemory":
        """Begin to ask, for as long as this process runs; returns after the first answer."""
        threading.Thread(target=self._ask, daemon=True, name="peak memory").start()
        self._first.wait()
        return self

    def _ask(self) -> None:
        pause = threading.Event()
        try:
            with nvml.memory_of(self._uuid) as used:
                while True:
                    self.bytes = max(self.bytes or 0, used())
                    self._first.set()
                    pause.wait(_INTERVAL)
        except NvmlError:
            self._first.set()
