"""NVML, the library of nvidia-smi, through ctypes: it comes with the driver, and asking it does not start CUDA.

See: https://docs.nvidia.com/deploy/nvml-api/
"""

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"
_LENGTH = 96  # bytes of a name, of a UUID and of a version, at least
_INSUFFICIENT_SIZE = 7
# nvmlGpuTopologyLevel_t, as `nvidia-smi topo -m` calls what a pair of GPUs is connected by.
_PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_P2P_READ = 0  # nvmlGpuP2PCapsIndex_t
_P2P_OK = 0  # nvmlGpuP2PStatus_t
_MOST_NVLINKS = 18  # NVML_NVLINK_MAX_LINKS
_UNCORRECTED, _SINCE_RESET = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
_RECOVERY = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, of drivers from 570 on


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


@dataclass(frozen=True)
class Link:
    """What connects two GPUs: the path over PCIe as nvidia-smi calls it, and how many NVLinks of the first one are active.

    `peer` is whether the driver lets one read the other's memory. What NVML does not say is None.
    """

    between: tuple[int, int]
    path: str | None
    peer: bool | None
    nvlinks: int | None


@dataclass(frozen=True)
class Ports:
    """What a GPU is connected through: active NVLinks, their version as nvmlNvlinkVersion_t counts, and the PCIe link.

    `pcie_generation` and `pcie_lanes` are as negotiated now: an idle GPU lowers its generation. What NVML does not say is None.
    """

    nvlinks: int | None
    nvlink_version: int | None
    pcie_generation: int | None
    pcie_lanes: int | None


@dataclass(frozen=True)
class Health:
    """What NVML counts of a GPU's faults since it was reset, and what connects it. What NVML does not say is None.

    `recovery` is the number of nvmlDeviceGpuRecoveryAction_t: 0 none, 1 reset, 2 reboot, 3 drain peers, 4 drain and reset.
    `throttled` are the bits of nvmlClocksEventReasons.
    """

    uncorrected: int | None  # errors of memory
    remap_pending: bool
    remap_failed: bool
    recovery: int | None
    nvlinks: tuple[int, int] | None  # active, and all that the card has
    lanes: tuple[int, int] | None  # of PCIe: in use, and the most that card and slot can use
    throttled: int


class _Field(ctypes.Structure):
    """nvmlFieldValue_t, with the part of its value that is an unsigned int."""

    _fields_ = [
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("type", ctypes.c_int),
        ("code", ctypes.c_int),
        ("number", ctypes.c_uint),
        ("rest", ctypes.c_uint),
    ]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def read() -> Driver:
    """Return what NVML says. Raises NvmlError."""
    with _opened() as library:
        version = _text(library, "nvmlSystemGetDriverVersion")
        cuda = ctypes.c_int()
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        cards = tuple(_card(library, index) for index in range(count.value))
        return Driver(version, (cuda.value // 1000, cuda.value % 1000 // 10), cards)


def links(indices: Sequence[int]) -> tuple[Link, ...]:
    """Return what connects the GPUs with these indices, a link for each pair. Raises NvmlError."""
    with _opened() as library:
        devices = {index: _handle(library, index) for index in indices}
        return tuple(_link(library, devices, pair) for pair in itertools.combinations(indices, 2))


def ports_of(uuid: str) -> Ports:
    """Return what the GPU `uuid` is connected through. Raises NvmlError."""
    with _opened() as library:
        device = _handle_of(library, uuid)
        active = _active_nvlinks(library, device)
        return Ports(
            nvlinks=None if active is None else len(active),
            nvlink_version=_number(library, "nvmlDeviceGetNvLinkVersion", device, active[0]) if active else None,
            pcie_generation=_number(library, "nvmlDeviceGetCurrPcieLinkGeneration", device),
            pcie_lanes=_number(library, "nvmlDeviceGetCurrPcieLinkWidth", device),
        )


def health_of(uuid: str) -> Health:
    """Return the faults of the GPU `uuid`. Raises NvmlError."""
    with _opened() as library:
        device = _handle_of(library, uuid)
        errors = ctypes.c_ulonglong()
        counted = _code(library, "nvmlDeviceGetTotalEccErrors", device, _UNCORRECTED, _SINCE_RESET, ctypes.byref(errors))
        rows = [ctypes.c_uint() for _ in range(4)]
        _code(library, "nvmlDeviceGetRemappedRows", device, *map(ctypes.byref, rows))
        pages = _number(library, "nvmlDeviceGetRetiredPagesPendingStatus", device)
        reasons = ctypes.c_ulonglong()
        _code(library, "nvmlDeviceGetCurrentClocksThrottleReasons", device, ctypes.byref(reasons))
        states = _nvlink_states(library, device)
        lanes = [_number(library, f"nvmlDeviceGet{which}PcieLinkWidth", device) for which in ("Curr", "Max")]
        return Health(
            uncorrected=None if counted else errors.value,
            remap_pending=bool(rows[2].value or pages),
            remap_failed=bool(rows[3].value),
            recovery=_recovery(library, device),
            nvlinks=(sum(map(bool, states.values())), len(states)) if states else None,
            lanes=(lanes[0], lanes[1]) if lanes[0] is not None and lanes[1] is not None else None,
            throttled=reasons.value,
        )


@contextlib.contextmanager
def memory_of(uuid: str) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes in use on the GPU `uuid`, by all processes together. Raises NvmlError."""
    with _opened() as library:
        device = _handle_of(library, uuid)

        def used() -> int:
            memory = _Memory()
            _call(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
            return int(memory.used)

        yield used


@contextlib.contextmanager
def _opened() -> Iterator[ctypes.CDLL]:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise NvmlError(f"{_LIBRARY} not found") from None
    with _initialised(library):
        yield library


@contextlib.contextmanager
def _initialised(library: ctypes.CDLL) -> Iterator[None]:
    _call(library, "nvmlInit_v2")
    try:
        yield
    finally:
        library.nvmlShutdown()


def _handle(library: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    device = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
    return device


def _handle_of(library: ctypes.CDLL, uuid: str) -> ctypes.c_void_p:
    device = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(device))
    return device


def _active_nvlinks(library: ctypes.CDLL, device: ctypes.c_void_p) -> list[int] | None:
    """Return the NVLinks of a card that are active, None for a card without NVLink."""
    states = _nvlink_states(library, device)
    return [link for link, state in states.items() if state] if states else None


def _nvlink_states(library: ctypes.CDLL, device: ctypes.c_void_p) -> dict[int, int]:
    """Return the NVLinks that a card has, with 1 for those that are active; empty for a card without NVLink."""
    states = {link: _number(library, "nvmlDeviceGetNvLinkState", device, link) for link in range(_MOST_NVLINKS)}
    return {link: state for link, state in states.items() if state is not None}


def _recovery(library: ctypes.CDLL, device: ctypes.c_void_p) -> int | None:
    value = _Field(field=_RECOVERY)
    failed = _code(library, "nvmlDeviceGetFieldValues", device, 1, ctypes.byref(value))
    return None if failed or value.code else int(value.number)


def _link(library: ctypes.CDLL, devices: dict[int, ctypes.c_void_p], pair: tuple[int, int]) -> Link:
    first, second = (devices[index] for index in pair)
    level = _number(library, "nvmlDeviceGetTopologyCommonAncestor", first, second)
    status = _number(library, "nvmlDeviceGetP2PStatus", first, second, _P2P_READ)
    active = _active_nvlinks(library, first)
    return Link(
        between=pair,
        path=None if level is None else _PATHS.get(level, f"level {level}"),
        peer=None if status is None else status == _P2P_OK,
        nvlinks=None if active is None else len(active),
    )


def _number(library: ctypes.CDLL, function: str, *arguments: object) -> int | None:
    """Return the number that a function of NVML answers with, None where this driver or card has none."""
    found = ctypes.c_uint()
    return None if _code(library, function, *arguments, ctypes.byref(found)) else found.value


def _code(library: ctypes.CDLL, function: str, *arguments: object) -> int:
    """Call a function of NVML that a driver or card may not have, and return its code: 0 where it answered."""
    try:
        return int(getattr(library, function)(*arguments))
    except AttributeError:
        return -1


def _card(library: ctypes.CDLL, index: int) -> Card:
    device = _handle(library, index)
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
