"""The NVIDIA driver: whether there is one, whether this process reaches it, and whether it is new enough."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine import gpus, nvml, places
from smoke_tests.machine.finding import Finding, ok
from smoke_tests.machine.gpus import Visible
from smoke_tests.machine.software import numbers

_OLDEST = Path(__file__).with_name("drivers.json")
# Compute capability of the Blackwell generation, and the first driver that knows it.
_BLACKWELL, _BLACKWELL_DRIVER = 10, "570.26"
# CUresult of cuInit -> what it means, and what to do. See: CUDA driver API, CUresult.
_STUB = 34
_START = {
    _STUB: ("libcuda.so.1 is the stub of a CUDA toolkit", "take its folder (…/lib64/stubs) off LD_LIBRARY_PATH"),
    802: ("the system is not yet initialised", "start nvidia-fabricmanager, of the driver's version: NVSwitch requires it"),
    803: ("library and kernel module are of different drivers", "reboot, or start the container again"),
    804: (
        "the GPU does not support forward compatibility",
        "take the package cuda-compat off LD_LIBRARY_PATH, and update the driver",
    ),
    gpus.UNKNOWN: ("unknown error", "see dmesg; load nvidia-uvm again (modprobe), or reboot"),
    gpus.NO_ANSWER: ("no answer", "see dmesg for Xid errors; reset the GPU (nvidia-smi -r), or reboot"),
}
_WSL = "/usr/lib/wsl/lib"
_COMPAT = "https://docs.nvidia.com/deploy/cuda-compatibility/"


@dataclass(frozen=True)
class Places:
    """Where the kernel shows a driver; tests have others."""

    proc: Path
    devices: Path

    @classmethod
    def of_this_machine(cls) -> "Places":
        """Return /proc and /dev, or what SMOKEHOUSE_PROC and SMOKEHOUSE_DEV say."""
        return cls(places.proc(), places.devices())

    @property
    def module(self) -> str | None:
        """The version of the kernel's module, empty if unknown; None where it is not loaded. In containers, the host's."""
        try:
            text = (self.proc / "driver/nvidia/version").read_text()
        except OSError:
            return None
        found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
        return found[1] if found else ""

    @property
    def wsl(self) -> bool:
        """Whether it is WSL2 with a GPU, where the driver is Windows' own."""
        return (self.devices / "dxg").exists()


def oldest(cuda: tuple[int, int]) -> str | None:
    """Return the oldest driver for programs of CUDA `cuda` by minor-version compatibility, None if unknown."""
    found = json.loads(_OLDEST.read_text())["oldest_driver_of_cuda"].get(str(cuda[0]))
    return str(found) if found else None


def check(cuda: tuple[int, int] | None, what: str, visible: Visible, *, required: bool, container: bool) -> Iterator[Finding]:
    """Yield what is wrong with the driver for `what`, built for CUDA `cuda`; without a GPU it is a failure if `required`."""
    places = Places.of_this_machine()
    version: str | None
    try:
        version = nvml.read().version
        managed = True
    except nvml.NvmlError:
        version, managed = places.module, False
    supported = gpus.driver_cuda()
    if supported is None:
        yield _unreachable(version, places, managed=managed, required=required, container=container)
        return
    yield from _devices(places, version)
    if problem := _START.get(visible.error):
        why, fix = problem
        code = f" (error {visible.error})" if visible.error > 0 else ""
        yield Finding("fail" if required else "warn", f"CUDA does not start: {why}{code}", "NVIDIA driver", fix)
    elif not visible.gpus:
        fix = "check nvidia-smi and CUDA_VISIBLE_DEVICES"
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        by = "" if chosen is None else f" with CUDA_VISIBLE_DEVICES={chosen[:80]!r}"
        yield Finding("fail" if required else "warn", f"driver {version or 'found'}, but no GPU is visible{by}", "GPUs", fix)
    if cuda and visible.error != _STUB:
        yield _age(version, supported, cuda, what)
    newest = max((gpu.capability[0] for gpu in visible.gpus), default=0)
    if newest >= _BLACKWELL and version and numbers(version) < numbers(_BLACKWELL_DRIVER):
        fix = f"update it to {_BLACKWELL_DRIVER} or later"
        yield Finding("fail", f"version {version} does not support GPUs of the Blackwell generation", "NVIDIA driver", fix)


def _unreachable(version: str | None, places: Places, *, managed: bool, required: bool, container: bool) -> Finding:
    """Return why there is no libcuda; `managed` is whether NVML is there even so."""
    level = "fail" if required else "warn"
    where, only_cpu = "NVIDIA driver", "so only the CPU works"
    if places.wsl:
        what = f"Windows has a GPU, but libcuda.so.1 is not found, {only_cpu}"
        fix = (
            "start with --gpus all"
            if container
            else f"run export LD_LIBRARY_PATH={_WSL}, or install NVIDIA's driver in Windows"
        )
    elif version is not None:
        what = f"version {version or 'unknown'} is on this machine, but libcuda.so.1 is not found here, {only_cpu}"
        start = "start with NVIDIA_DRIVER_CAPABILITIES=compute,utility" if managed else "start with --gpus all"
        fix = start if container else "install the driver's libraries (libcuda1), or run ldconfig"
    else:
        what = f"not found, {only_cpu}"
        fix = f"if the machine has a GPU, {'start with --gpus all' if container else 'install the driver'}"
    return Finding("fail" if level == "fail" else "warn", what, where, fix)


def _devices(places: Places, version: str | None) -> Iterator[Finding]:
    control = places.devices / "nvidiactl"
    if places.wsl or version is None:
        return
    if not control.exists():
        fix = "start the container with --gpus all, or load the module with nvidia-modprobe -u -c=0"
        yield Finding("fail", "not found, so CUDA does not start", str(control), fix)
    elif not os.access(control, os.R_OK | os.W_OK):
        fix = "have an administrator give this user access to the GPUs (group video or render)"
        yield Finding("fail", "permission denied", str(control), fix)


def _age(version: str | None, supported: tuple[int, int], cuda: tuple[int, int], what: str) -> Finding:
    """Compare the driver with the CUDA release of `what`.

    A driver runs programs of its own major release of CUDA, later minor ones included; a cuda-compat package raises that.
    """
    needed, where = oldest(cuda), "NVIDIA driver"
    shown, release, limit = version or "unknown version", "{}.{}".format(*cuda), "{}.{}".format(*supported)
    if supported[0] < cuda[0]:
        fix = (
            f"update it, use an environment for CUDA {supported[0]}, or on data-centre GPUs the package cuda-compat ({_COMPAT})"
        )
        needs = f"needs {needed} or later" if needed else "needs a later one"
        return Finding("fail", f"{what} with CUDA {release} {needs}, found {shown}, which supports CUDA {limit}", where, fix)
    more = f", {needed} or later is needed" if needed else ""
    if needed and version and numbers(version) < numbers(needed):
        more = f", with CUDA {limit} by cuda-compat"
    return ok(where, f"{shown}, supports CUDA {limit}{more}")
