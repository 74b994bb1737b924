"""The nominal rates of what connects a GPU, beside which a measured bandwidth shows a slow node. Nothing here starts CUDA."""

from typing import Any

from smoke_tests.machine import nvml
from smoke_tests.machine.nvml import NvmlError, Ports

# nvmlNvlinkVersion_t -> the version's name and GB/s of one link in one direction. NVIDIA gives the sum of both directions:
# 160 for 4 links of version 1 (P100), 300 for 6 of 2 (V100), 600 for 12 of 3 (A100), 900 for 18 of 4 (H100), 1800 for 18 of 5.
# See: nvml.h for the numbers, https://www.nvidia.com/en-us/data-center/nvlink/ for the rates.
_NVLINK = {
    1: ("1.0", 20.0),
    2: ("2.0", 25.0),
    3: ("2.2", 25.0),
    4: ("3.0", 25.0),
    5: ("3.1", 25.0),
    6: ("4.0", 25.0),
    7: ("5.0", 50.0),
}
# Generation of PCIe -> GB/s of one lane in one direction: GT/s by the encoding, 8b/10b, then 128b/130b, then 242 bytes of 256.
# See: PCI Express Base Specification 6.0, section 4.2; https://pcisig.com/specifications
_PCIE = {
    1: 2.5 * 8 / 10 / 8,
    2: 5 * 8 / 10 / 8,
    3: 8 * 128 / 130 / 8,
    4: 16 * 128 / 130 / 8,
    5: 32 * 128 / 130 / 8,
    6: 64 * 242 / 256 / 8,
}


def of_gpu(uuid: str | None) -> dict[str, Any]:
    """Return what the GPU `uuid` is connected through, with GB/s in one direction; what is unknown is None."""
    try:
        ports = nvml.ports_of(uuid) if uuid else Ports(None, None, None, None)
    except NvmlError:
        ports = Ports(None, None, None, None)
    version, of_link = _NVLINK.get(ports.nvlink_version or 0, (None, None))
    of_lane = _PCIE.get(ports.pcie_generation or 0)
    return {
        "nvlinks": ports.nvlinks,
        "nvlink_version": version,
        "nvlink_gb_per_second": of_link * ports.nvlinks if of_link and ports.nvlinks else None,
        "pcie_generation": ports.pcie_generation,
        "pcie_lanes": ports.pcie_lanes,
        "pcie_gb_per_second": of_lane * ports.pcie_lanes if of_lane and ports.pcie_lanes else None,
    }


def described(rates: dict[str, Any]) -> str:
    """Return the link that NCCL prefers with its nominal rate: NVLink where links are active, PCIe otherwise."""
    if rates["nvlinks"]:
        name, rate = f"{rates['nvlinks']} NVLinks {rates['nvlink_version'] or ''}".rstrip(), rates["nvlink_gb_per_second"]
    elif rates["pcie_generation"] and rates["pcie_lanes"]:
        name, rate = f"PCIe {rates['pcie_generation']} x{rates['pcie_lanes']}", rates["pcie_gb_per_second"]
    else:
        return "unknown link"
    return f"{name} nominally {rate:.1f} GB/s" if rate else f"{name} of unknown rate"
