"""Which network NCCL took, by what it logs with NCCL_DEBUG=INFO. Imports no torch.

NCCL falls back to sockets without an error where it finds no InfiniBand or its plugin for EFA, and training is then slower by
an order of magnitude. What it says, of NCCL 2.8 to 2.28:

    NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>
    NCCL INFO NET/OFI Selected provider is efa, fabric is efa (found 4 nics)
    NCCL INFO Using network IB                                  (or Socket, AWS Libfabric, a plugin's name)
    NCCL INFO Channel 00/0 : 1[7] -> 8[0] [send] via NET/IB/0/GDRDMA

See: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html (NCCL_DEBUG), src/init.cc and src/transport/net.cc.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Where the kernel lists devices of InfiniBand, RoCE and EFA.
DEVICES = Path("/sys/class/infiniband")
_NETWORK = re.compile(r"NCCL INFO .*?Using network (?P<name>[^\n]+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"NCCL INFO Channel \S+ : \S+ -> \S+ \[(?:send|receive)\] via NET/(?P<name>[^/\n]+)/\d+(?P<gdr>/GDRDMA)?")
_REASON = re.compile(r"NCCL (?:INFO|WARN) (?P<said>NET/(?:IB|OFI|Plugin)[^\n]*(?:No device found|[Ff]ail|not find)[^\n]*)")
SOCKET = "Socket"


@dataclass(frozen=True)
class Network:
    """What one rank's NCCL took: network, links by name, how many of them read GPU memory, and why others failed."""

    name: str  # empty where the log says none
    links: dict[str, int]
    gpu_direct: int
    reasons: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The networks that carry data; where no link between nodes is logged, the one that was chosen."""
        return sorted(self.links) or ([self.name] if self.name else [])

    def __str__(self) -> str:
        """Return the network in words."""
        links = sum(self.links.values())
        direct = f", {self.gpu_direct} of {links} links with GPUDirect RDMA" if links else ""
        return (", ".join(f"NET/{name}" for name in self.names) or "no network named") + direct


def parse(text: str) -> Network:
    """Return what a rank's NCCL took, by the text of its log."""
    chosen = [found["name"] for found in _NETWORK.finditer(text)]
    links = [(found["name"], bool(found["gdr"])) for found in _LINK.finditer(text)]
    reasons = dict.fromkeys(found["said"].strip() for found in _REASON.finditer(text))
    return Network(
        chosen[-1] if chosen else "", dict(Counter(name for name, _ in links)), sum(gdr for _, gdr in links), (*reasons,)
    )


def problem(network: Network, promised: str, devices: list[str]) -> str:
    """Return how the network differs from the `promised` one, empty where it does not or none was promised.

    `devices` are what the kernel lists, which tell a missing driver from a missing plugin.
    """
    if not promised or (network.names and set(network.names) == {promised}):
        return ""
    found = ", ".join(f"NET/{name}" for name in network.names) or "no network in NCCL's log"
    why = f" ({'; '.join(network.reasons[:2])})" if network.reasons else ""
    there = f"the kernel lists {', '.join(devices[:4])}" if devices else f"the kernel lists no device in {DEVICES}"
    fix = (
        "give the job the devices and memory to lock (ulimit -l unlimited), and the image NCCL's plugin for them"
        if promised != SOCKET
        else "leave out --network"
    )
    return f"expected NCCL over NET/{promised}, found {found}{why}; {there}; {fix}"


def devices(folder: Path = DEVICES) -> list[str]:
    """Return the InfiniBand, RoCE and EFA devices that the kernel lists."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
