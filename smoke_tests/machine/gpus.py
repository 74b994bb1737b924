"""The GPUs that this process sees, and what is wrong with them. Nothing here starts CUDA in this process."""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smoke_tests.machine import nvml
from smoke_tests.machine.finding import Finding, ok
from smoke_tests.machine.nvml import Card, NvmlError

# Bytes that a rank with the synthetic checkpoint needs on its GPU: CUDA context, NCCL's buffers, and little else.
NEEDED = 2 << 30
# Environments with kernels for GPUs up to the newest, and from the Maxwell generation on.
NEWEST, OLDEST = "qwen2.5-vl-latest", "qwen2.5-vl"
_VOLTA = (7, 0)  # the first that NEWEST has kernels for
_PROBE_DEADLINE = 60.0  # seconds
_EXCLUSIVE, _PROHIBITED = 3, 2
# CUresult of cuda.h, and a number of our own.
UNKNOWN, NO_ANSWER = 999, -1

# In a process of its own, because it starts CUDA. NVML has a GPU's own UUID, which the first version of the function gives; the
# second one would give that of a MIG slice.
_PROBE = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
found, count = [], ctypes.c_int()
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
for number in range(count.value):
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    size, uuid = ctypes.c_size_t(), ctypes.create_string_buffer(16)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    cuda.cuDeviceGetUuid(uuid, device)
    found.append([major.value, minor.value, size.value, uuid.raw.hex()])
print(json.dumps([code, found]))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA gives to a program, or a MIG slice of one; `card` is what NVML says of it, None where it does not.

    `total` are the bytes of memory that CUDA gives: of a slice, those of the slice.
    """

    capability: tuple[int, int]
    card: Card | None = None
    total: int = 0

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"GPU {self.card.index} ({self.card.name})" if self.card else "GPU"

    @property
    def free(self) -> int:
        """Bytes that a program may have: what NVML says is free or, of a MIG slice and without NVML, all that there is."""
        return self.card.free if self.card and not self.card.mig else self.total

    @property
    def exclusive(self) -> bool:
        """Whether one process alone may use it at a time."""
        return self.card is not None and self.card.compute_mode == _EXCLUSIVE

    @property
    def architecture(self) -> str:
        """Its architecture as nvcc calls it, such as sm_90."""
        return "sm_{}{}".format(*self.capability)


@dataclass(frozen=True)
class Visible:
    """The GPUs that a program sees; `problem` says why NVML does not know them, `error` is CUDA's code if it does not start."""

    gpus: tuple[Gpu, ...]
    problem: str = ""
    mig: bool = False
    error: int = 0


def visible_gpus() -> Visible:
    """Return the GPUs that a program sees, in its order: CUDA itself says so, in another process, and NVML what they are.

    CUDA_VISIBLE_DEVICES counts in an order of CUDA's own, the fastest first, unless CUDA_DEVICE_ORDER is PCI_BUS_ID. There are
    none where there is no libcuda, as in a container that was started with NVML's library alone.
    """
    if driver_cuda() is None:
        return Visible(())
    error, found = _asked_from_cuda()
    try:
        cards, problem = {card.uuid: card for card in nvml.read().cards}, ""
    except NvmlError as said:
        cards, problem = {}, str(said)
    gpus = tuple(Gpu((major, minor), cards.get(_uuid(digits)), total) for major, minor, total, digits in found)
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")
    return Visible(gpus, problem, slices or any(gpu.card.mig for gpu in gpus if gpu.card), error)


def _uuid(digits: str) -> str:
    """Return a UUID of hexadecimal digits as NVML writes it."""
    return "GPU-" + "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def _asked_from_cuda() -> tuple[int, list[tuple[int, int, int, str]]]:
    """Return CUDA's error code, and of each GPU major and minor capability, bytes of memory, and the UUID's digits."""
    try:
        command = [sys.executable, "-I", "-c", _PROBE]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_DEADLINE)
        code, found = json.loads(ended.stdout)
        return code, [(major, minor, total, digits) for major, minor, total, digits in found]
    except subprocess.TimeoutExpired:
        return NO_ANSWER, []
    except (OSError, ValueError):
        return UNKNOWN, []


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA release that libcuda supports (major, minor), None where there is no libcuda.

    That of a cuda-compat package on LD_LIBRARY_PATH counts, since it is the one that programs load. Does not start CUDA.
    """
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def kernels_for(capability: tuple[int, int], compiled: Sequence[str]) -> str:
    """Return what runs on a GPU of what was `compiled` (sm_90, compute_90, …): `binary`, `ptx`, or nothing.

    A binary runs on the same major architecture from its minor one on; one of `a` on its own only. PTX is compiled by the
    driver for any later architecture. See: NVIDIA, CUDA compatibility of compute capabilities.
    """
    found = ""
    for name in compiled:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if not match:
            continue
        kind, major, minor, only = match[1], int(match[2]), int(match[3]), match[4]
        same = (major, minor) == capability if only == "a" else major == capability[0] and minor <= capability[1]
        if kind == "sm" and same:
            return "binary"
        if kind == "compute" and (same if only else (major, minor) <= capability):
            found = "ptx"
    return found


def check(visible: Visible, ranks: int | None) -> Iterator[Finding]:
    """Yield what is wrong with the GPUs for `ranks` processes, None for one on each GPU."""
    gpus = visible.gpus
    if visible.problem and gpus:
        yield Finding(
            "warn",
            f"{visible.problem}; {len(gpus)} GPUs found by CUDA itself",
            "NVML",
            "install the driver's NVML, or start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    if visible.mig:
        fix = "run one rank (--nproc 1), or have an administrator turn MIG off"
        what = "a program sees one slice of a GPU in MIG mode, so NCCL runs one rank"
        yield Finding("fail" if (ranks or 1) > 1 else "warn", what, gpus[0].where if gpus and gpus[0].card else "MIG", fix)
    for gpu in gpus:
        if gpu.card:
            yield from _card(gpu, gpu.card, shared=(ranks or 1) > len(gpus))
    if gpus:
        names = sorted({f"{gpu.card.name} ({gpu.architecture})" if gpu.card else gpu.architecture for gpu in gpus})
        yield ok("GPUs", f"{len(gpus)} visible: {', '.join(names)}")


def _card(gpu: Gpu, card: Card, *, shared: bool) -> Iterator[Finding]:
    where, free, total = gpu.where, gpu.free, gpu.total if card.mig else card.total
    if card.compute_mode == _PROHIBITED:
        fix = f"have an administrator run nvidia-smi -i {card.index} -c DEFAULT"
        yield Finding("fail", "compute mode is prohibited, so no program can use it", where, fix)
    elif gpu.exclusive and (card.processes or shared):
        why = f"{card.processes} processes use it" if card.processes else "several ranks would share it"
        fix = f"end them, or have an administrator run nvidia-smi -i {card.index} -c DEFAULT"
        yield Finding("fail", f"compute mode is exclusive and {why}", where, fix)
        return
    if free < NEEDED:
        fix = "use a larger slice" if card.mig else "end what uses it, or choose others with CUDA_VISIBLE_DEVICES"
        yield Finding("fail", f"{free >> 20} MiB of {total >> 20} MiB free, a rank needs {NEEDED >> 20}", where, fix)
    elif card.processes:
        yield Finding(
            "warn",
            f"in use by {card.processes} processes, {free >> 20} MiB of {total >> 20} MiB free",
            where,
            "times are not comparable; choose others with CUDA_VISIBLE_DEVICES",
        )


def check_kernels(gpus: Sequence[Gpu], compiled: Sequence[str], torch: str, cuda: tuple[int, int]) -> Iterator[Finding]:
    """Yield the GPUs that `torch`, built for CUDA `cuda` with kernels for `compiled`, cannot use."""
    for architecture, gpu in {gpu.architecture: gpu for gpu in reversed(gpus)}.items():  # the first of each
        kind = kernels_for(gpu.capability, compiled)
        listed = f"torch {torch} has kernels for {', '.join(compiled)}"
        if not kind:
            fix = f"use an environment whose torch has them, such as {NEWEST if gpu.capability >= _VOLTA else OLDEST}"
            yield Finding("fail", f"{listed}, none of which runs on {architecture}", gpu.where, fix)
        elif kind == "ptx" and (supported := driver_cuda()) and supported < cuda:
            release = "{}.{}".format(*cuda)
            fix = f"update the driver to one of CUDA {release}, or use an environment for an older CUDA"
            what = f"{listed}; for {architecture} the driver would have to compile PTX of CUDA {release}, it supports {{}}.{{}}"
            yield Finding("fail", what.format(*supported), gpu.where, fix)
        else:
            yield ok("kernels", f"torch {torch} has {architecture}'s as {kind}")
