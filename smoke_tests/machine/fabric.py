"""What connects machines: InfiniBand or EFA with its libraries, and the interface that NCCL's sockets take."""

import array
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine import places
from smoke_tests.machine.finding import Finding, Level, ok

KINDS = ("infiniband", "efa", "ethernet")
_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_LDCONFIG_DEADLINE = 10.0  # seconds
# Interfaces of one machine alone, through which no other is reached.
_LOCAL = ("docker", "veth", "virbr", "cni", "flannel", "br-", "podman", "lxc", "lxd")
# Where NVIDIA's and AWS's installers put NCCL's plugin for libfabric.
_PLUGIN = ("libnccl-net.so", "libnccl-net-ofi.so", "libnccl-net-aws-ofi.so")
_PLUGIN_FOLDERS = ("/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu", "/opt/amazon/ofi-nccl/lib", "/opt/aws-ofi-nccl/lib")


@dataclass(frozen=True)
class Port:
    """A port of a device: the `device`, its `kind` (infiniband, for RoCE too, or efa), whether it is active, its rate."""

    device: str
    number: str
    kind: str
    active: bool
    rate: str  # as the kernel says it, such as "400 Gb/sec (4X NDR)"

    @property
    def gigabits(self) -> float:
        """The rate in Gb/s, 0 if unknown."""
        found = re.match(r"[\d.]+", self.rate)
        return float(found[0]) if found else 0.0


def ports() -> list[Port]:
    """Return the ports of all RDMA devices that the kernel shows."""
    found = []
    for device in sorted((places.system() / "class/infiniband").glob("*")):
        kind = "efa" if (device / "device/driver").resolve().name == "efa" else "infiniband"
        for port in sorted((device / "ports").glob("*")):
            active = "ACTIVE" in _text(port / "state")
            found.append(Port(device.name, port.name, kind, active, _text(port / "rate")))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def check(promised: str | None, *, container: bool) -> Iterator[Finding]:
    """Yield what is wrong with the fabric that was `promised`, one of KINDS, or with what is found where nothing was."""
    level: Level = "fail" if promised in ("infiniband", "efa") else "warn"
    found = [port for port in ports() if promised in (None, port.kind)]
    if promised == "ethernet" or not found:
        if level == "fail":
            fix = "request the device (Kubernetes: a resource; Docker: --device /dev/infiniband), or load its driver"
            yield Finding("fail", f"{promised} was promised, but the kernel shows no such device", "fabric", fix)
        else:
            yield ok("fabric", "no InfiniBand or EFA is used, so NCCL uses TCP")
        return
    yield from _ports(found, level)
    yield from _device_files(level, container=container)
    yield from _libraries({port.kind for port in found}, level)
    yield from _settings(found, level)
    yield ok("fabric", ", ".join(f"{port.device} {port.rate}".strip() for port in found if port.active) or "no active port")


def _ports(found: Sequence[Port], level: Level) -> Iterator[Finding]:
    active = [port for port in found if port.active]
    for port in found:
        if not port.active:
            fix = "check cable and switch (ibstat), or leave it out with NCCL_IB_HCA"
            yield Finding("warn" if active else level, "port is not active", f"{port.device}:{port.number}", fix)
    fastest = max((port.gigabits for port in active), default=0.0)
    for port in active:
        if 0 < port.gigabits < fastest:
            what = f"runs at {port.rate}, another port at {fastest:g} Gb/sec"
            fix = "check its cable, or leave it out with NCCL_IB_HCA"
            yield Finding("warn", what, f"{port.device}:{port.number}", fix)


def _device_files(level: Level, *, container: bool) -> Iterator[Finding]:
    folder = places.devices() / "infiniband"
    files = sorted(folder.glob("uverbs*"))
    if not files:
        fix = "start with --device /dev/infiniband" if container else "load ib_uverbs"
        yield Finding(level, "no uverbs device, so that programs cannot use the fabric", str(folder), fix)
    for file in files:
        if not os.access(file, os.R_OK | os.W_OK):
            yield Finding(level, "permission denied", str(file), "have an administrator give this user access (group rdma)")


def _libraries(kinds: set[str], level: Level) -> Iterator[Finding]:
    if not library("libibverbs.so.1"):
        fix = "install libibverbs1 (rdma-core), or the environment with its conda packages"
        yield Finding(level, "not found, so NCCL cannot use the fabric", "libibverbs.so.1", fix)
    if "efa" in kinds:
        plugin = os.environ.get("NCCL_NET_PLUGIN", "")
        named = (plugin, f"libnccl-net-{plugin}.so") if plugin else _PLUGIN
        if not any(library(name, _PLUGIN_FOLDERS) for name in named):
            fix = "add the plugin to the image (aws-ofi-nccl), and its folder to LD_LIBRARY_PATH"
            yield Finding(level, f"none of {', '.join(named)} found, so NCCL uses TCP in place of EFA", "NCCL plugin", fix)


def _settings(found: Sequence[Port], level: Level) -> Iterator[Finding]:
    if os.environ.get("NCCL_IB_DISABLE") == "1" and any(port.kind == "infiniband" for port in found):
        yield Finding(level, "is 1, so NCCL uses TCP in place of InfiniBand", "NCCL_IB_DISABLE", "unset it")
    chosen = os.environ.get("NCCL_IB_HCA", "")
    if chosen and not any(_matches(chosen, port.device, port.number) for port in found):
        devices = ", ".join(sorted({port.device for port in found}))
        yield Finding(level, f"{chosen} matches none of {devices}", "NCCL_IB_HCA", "correct or unset it")


def _matches(variable: str, device: str, number: str = "") -> bool:
    """Whether a list of NCCL's (`^` excludes, `=` compares whole names, otherwise prefixes) chooses a device or interface."""
    excluded = variable.startswith("^")
    text = variable.removeprefix("^")
    exact = text.startswith("=")
    hit = False
    for name in filter(None, text.removeprefix("=").split(",")):
        wanted, _, port = name.partition(":")
        same = device == wanted if exact else device.startswith(wanted)
        hit |= same and port in ("", number)
    return hit != excluded


def library(name: str, folders: Sequence[str] = ()) -> Path | None:
    """Return the file of a shared library as the loader would find it, without loading it; None where there is none."""
    listed = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    for folder in [*filter(None, listed), str(Path(sys.prefix, "lib")), *folders]:
        if (found := Path(folder, name)).exists():
            return found
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if not ldconfig:
        return None
    try:
        said = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, timeout=_LDCONFIG_DEADLINE).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    paths = (Path(line.split()[-1]) for line in said.splitlines() if line.split()[:1] == [name])
    return next(paths, None)


@dataclass(frozen=True)
class Interface:
    """A network interface that is up: its name, and an address of it."""

    name: str
    address: str
    loopback: bool


def interfaces() -> list[Interface]:
    """Return the interfaces of this network namespace that are up and have an address, in the kernel's order."""
    found = []
    sixth = _ipv6()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            flags = struct.unpack_from("<16xH", _ioctl(probe, _SIOCGIFFLAGS, name) or bytes(18))[0]
            answer = _ioctl(probe, _SIOCGIFADDR, name)
            address = socket.inet_ntoa(answer[20:24]) if answer else sixth.get(name, "")
            if flags & _IFF_UP and address:
                found.append(Interface(name, address, bool(flags & _IFF_LOOPBACK)))
    return found


def _ioctl(probe: socket.socket, request: int, name: str) -> bytes | None:
    buffer = array.array("b", struct.pack("16s24x", name.encode()[:15]))
    try:
        fcntl.ioctl(probe.fileno(), request, buffer, True)
    except OSError:
        return None
    return buffer.tobytes()


def _ipv6() -> dict[str, str]:
    """Return interface -> an address that is not of its link only."""
    found: dict[str, str] = {}
    for line in _text(places.proc() / "net/if_inet6").splitlines():
        fields = line.split()
        if len(fields) == 6 and fields[3] != "20":
            found.setdefault(fields[5], socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])))
    return found


def interface(found: Sequence[Interface]) -> Finding:
    """Return which of the interfaces NCCL's sockets take, and whether other machines are reached through it.

    Without NCCL_SOCKET_IFNAME, NCCL prefers names that begin with ib, then others, then docker's, then loopback.
    See: ncclFindInterfaces in src/misc/socket.cc of NCCL.
    """
    where, names = "NCCL interface", ", ".join(one.name for one in found) or "none"
    fix = "set NCCL_SOCKET_IFNAME to the interface of the other machines, such as ^lo,docker"
    if variable := os.environ.get("NCCL_SOCKET_IFNAME"):
        found = [one for one in found if _matches(variable, one.name)]
        if not found:
            return Finding("fail", f"NCCL_SOCKET_IFNAME={variable} matches none of {names}", where, "correct or unset it")
    else:
        found = sorted(found, key=lambda one: (one.loopback, one.name.startswith("docker"), not one.name.startswith("ib")))
    if not found:
        return Finding("fail", "no interface is up and has an address", where, "run ip link set lo up as root")
    first = found[0]
    if first.loopback:
        return Finding("warn", f"{first.name}, which reaches this machine only", where, fix)
    if first.name.startswith(_LOCAL):
        return Finding("warn", f"{first.name} ({first.address}), a bridge of this machine", where, fix)
    return ok(where, f"{first.name} ({first.address})")
