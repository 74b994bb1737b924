"""NVML, the library of nvidia-smi, through ctypes: it comes with the driver, and asking it does not start CUDA.

See: https://docs.nvidia.com/deploy/nvml-api/
"""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"
_LENGTH = 96  # bytes of a name, of a UUID and of a version, at least
_INSUFFICIENT_SIZE = 7


class NvmlError(Exception):
    """NVML is not found or fails; the text says which."""


@dataclass(frozen=True)
class Card:
    """A GPU of this machine as NVML sees it, whatever CUDA_VISIBLE_DEVICES says. Sizes are bytes."""

    index: int
    uuid: str
    name: str
    capability: tuple[int, int]
    total: int
    free: int
    mig: bool
    compute_mode: int  # 0 default, 2 prohibited, 3 exclusive process
    processes: int


@dataclass(frozen=True)
class Driver:
    """The driver's version, the newest CUDA release that it supports (major, minor), and its GPUs."""

    version: str
    cuda: tuple[int, int]
    cards: tuple[Card, ...]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def read() -> Driver:
    """Return what NVML says. Raises NvmlError."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise NvmlError(f"{_LIBRARY} not found") from None
    with _initialised(library):
        version = _text(library, "nvmlSystemGetDriverVersion")
        cuda = ctypes.c_int()
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        cards = tuple(_card(library, index) for index in range(count.value))
        return Driver(version, (cuda.value // 1000, cuda.value % 1000 // 10), cards)


@contextlib.contextmanager
def _initialised(library: ctypes.CDLL) -> Iterator[None]:
    _call(library, "nvmlInit_v2")
    try:
        yield
    finally:
        library.nvmlShutdown()


def _card(library: ctypes.CDLL, index: int) -> Card:
    device = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    _call(library, "nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    _call(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    current, pending, mode = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    # Cards without MIG, and drivers without these functions, answer with an error.
    mig = not library.nvmlDeviceGetMigMode(device, ctypes.byref(current), ctypes.byref(pending)) and current.value == 1
    known_mode = not library.nvmlDeviceGetComputeMode(device, ctypes.byref(mode))
    return Card(
        index=index,
        uuid=_text(library, "nvmlDeviceGetUUID", device),
        name=_text(library, "nvmlDeviceGetName", device),
        capability=(major.value, minor.value),
        total=memory.total,
        free=memory.free,
        mig=mig,
        compute_mode=mode.value if known_mode else 0,
        processes=_processes(library, device),
    )


def _processes(library: ctypes.CDLL, device: ctypes.c_void_p) -> int:
    """Return how many processes use a GPU, as far as NVML knows: in a container it sees none of the host's."""
    count = ctypes.c_uint(0)
    with contextlib.suppress(AttributeError):  # drivers before 510
        code = library.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), None)
        return count.value if code in (0, _INSUFFICIENT_SIZE) else 0
    return 0


def _text(library: ctypes.CDLL, function: str, *arguments: object) -> str:
    buffer = ctypes.create_string_buffer(_LENGTH)
    _call(library, function, *arguments, buffer, _LENGTH)
    return buffer.value.decode(errors="replace")


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    try:
        code = getattr(library, function)(*arguments)
    except AttributeError:
        raise NvmlError(f"{_LIBRARY} has no {function}") from None
    if code:
        library.nvmlErrorString.restype = ctypes.c_char_p
        raise NvmlError(f"{function}: {library.nvmlErrorString(code).decode(errors='replace')}")
