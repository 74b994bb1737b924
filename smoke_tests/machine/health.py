"""Whether GPUs are sound: memory errors, Xid errors of the driver, links that are down, throttling."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from smoke_tests.machine import nvml, places
from smoke_tests.machine.finding import Finding, ok
from smoke_tests.machine.gpus import Gpu
from smoke_tests.machine.nvml import Health, NvmlError

# nvmlDeviceGpuRecoveryAction_t -> what the driver requires before the GPU is used again.
_RECOVERY = {1: "a reset of the GPU", 2: "a reboot", 3: "its peers to be drained", 4: "to be drained and reset"}
# nvmlClocksEventReasons: hardware slowdown, its temperature, its power brake.
_THROTTLED = {0x08: "hardware slowdown", 0x40: "temperature", 0x80: "power brake"}
# Xid errors after which a GPU, its memory or its links are not to be trusted. Others, such as 13, 31 and 43, are mistakes of a
# program. See: https://docs.nvidia.com/deploy/xid-errors/
_XIDS = {
    48: "uncorrectable memory error",
    62: "micro-controller halted",
    63: "memory row to be remapped",
    64: "remapping of a memory row failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "many corrected memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP timed out",
    120: "GSP error",
    140: "unrecovered memory error",
    143: "GPU initialisation error",
    145: "NVLink error",
    149: "NVLink error",
}
_RECORD = re.compile(r"^\d+,\d+,(\d+),.*?NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)\b", re.DOTALL)
_RECORD_BYTES = 8192  # the kernel's longest record; a shorter buffer fails
_MOST_RECORDS = 100_000
_DRAIN = "take the machine out of service, reset the GPU (nvidia-smi -r) or reboot, and replace the GPU if it comes back"


def check(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Yield what is wrong with these GPUs by NVML, and by the kernel's log where it can be read."""
    known = {gpu.where: health for gpu in gpus if (health := _of_gpu(gpu))}
    most = max((health.nvlinks[0] for health in known.values() if health.nvlinks), default=0)
    findings = [finding for where, health in known.items() for finding in judge(where, health, most)]
    yield from findings
    yield from _xids()
    if known and not findings:
        yield ok("GPU health", "no uncorrected memory error, no pending reset, all links active")


def _of_gpu(gpu: Gpu) -> Health | None:
    try:
        return nvml.health_of(gpu.card.uuid) if gpu.card else None
    except NvmlError:  # a card that went away, or a driver that does not say
        return None


def judge(where: str, health: Health, most: int) -> Iterator[Finding]:
    """Yield what follows from the `health` of the GPU that messages call `where`; `most` NVLinks are active on one beside it.

    Where no GPU has more, that is how they were connected: by a bridge, or in a virtual machine without their other peers.
    """
    if health.recovery:
        needs = _RECOVERY.get(health.recovery, f"recovery action {health.recovery}")
        yield Finding("fail", f"the driver requires {needs}, after an Xid error or a memory error", where, _DRAIN)
    if health.remap_failed:
        yield Finding("fail", "remapping of a memory row failed", where, "have the GPU replaced")
    if health.remap_pending:
        fix = "reset the GPU (nvidia-smi -r) or reboot before the next job"
        yield Finding("fail", "a memory row or page waits to be retired", where, fix)
    if health.uncorrected:
        yield Finding("fail", f"{health.uncorrected} uncorrected memory errors since its last reset", where, _DRAIN)
    if health.nvlinks and 0 < health.nvlinks[0] < health.nvlinks[1]:
        what = "{} of {} NVLinks are active".format(*health.nvlinks)
        more = f", {most} on another GPU" if health.nvlinks[0] < most else ""
        fix = "restart nvidia-fabricmanager, reset the GPU, or have the board checked"
        yield Finding("fail" if more else "warn", what + more, where, fix if more else f"without a bridge or such peers, {fix}")
    if health.lanes and health.lanes[0] < health.lanes[1]:
        yield Finding("warn", "PCIe x{} in use, x{} possible".format(*health.lanes), where, "reseat the card or its riser")
    if reasons := [name for bit, name in _THROTTLED.items() if health.throttled & bit]:
        yield Finding("warn", f"clocks are reduced ({', '.join(reasons)})", where, "check cooling and power supply")


def _xids() -> Iterator[Finding]:
    """Yield the errors of hardware in the kernel's log. NVML reports only those that occur while a program waits for them."""
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    for microseconds, bus, number in _logged():
        if number in _XIDS:
            count, _ = seen.get((bus, number), (0, 0))
            seen[bus, number] = count + 1, microseconds // 1_000_000
    for (bus, number), (count, second) in sorted(seen.items()):
        what = f"Xid {number} ({_XIDS[number]}), {count} times, last {second} s after boot"
        yield Finding("warn", what, f"GPU at {bus}", f"see nvidia-smi -q; {_DRAIN}")


def _logged() -> Iterator[tuple[int, str, int]]:
    """Yield microseconds after boot, PCI address and number of each Xid in /dev/kmsg; nothing where it cannot be read."""
    with suppress(OSError):
        log = os.open(places.devices() / "kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for _ in range(_MOST_RECORDS):
                record = os.read(log, _RECORD_BYTES)
                if not record:
                    return
                for line in record.decode(errors="replace").splitlines():  # a file of tests has all its records at once
                    if found := _RECORD.match(line):
                        yield int(found[1]), found[2], int(found[3])
        finally:
            os.close(log)
