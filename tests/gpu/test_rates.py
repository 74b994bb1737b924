"""The nominal rates of a GPU's links: figures of NVIDIA's and PCI-SIG's data sheets, from what NVML answers."""

from pathlib import Path
from typing import Any

import pytest

from .test_evidence import run

RATES = """
import json
from smoke_tests.machine import rates

found = rates.of_gpu("GPU-00000000-0000-4000-8000-000000000000")
print(json.dumps([found, rates.described(found)]))
"""


@pytest.mark.parametrize(
    ("given", "rate", "text"),
    [
        # Half of what NVIDIA gives for both directions: V100 300, A100 600, H100 900 and B200 1800 GB/s.
        ({"nvlinks": 6, "nvlink_version": 2}, 150, "6 NVLinks 2.0 nominally 150.0 GB/s"),
        ({"nvlinks": 12, "nvlink_version": 4}, 300, "12 NVLinks 3.0 nominally 300.0 GB/s"),
        ({"nvlinks": 18, "nvlink_version": 6}, 450, "18 NVLinks 4.0 nominally 450.0 GB/s"),
        ({"nvlinks": 18, "nvlink_version": 7}, 900, "18 NVLinks 5.0 nominally 900.0 GB/s"),
        ({"nvlinks": 17, "nvlink_version": 6}, 425, "17 NVLinks 4.0 nominally 425.0 GB/s"),
        ({"nvlinks": 18, "nvlink_version": 99}, None, "18 NVLinks of unknown rate"),
    ],
)
def test_nvlink(libraries: Path, given: dict[str, Any], rate: float | None, text: str) -> None:
    found, described = run(libraries, RATES, pcie_generation=5, pcie_lanes=16, **given)
    assert (found["nvlinks"], found["nvlink_gb_per_second"], described) == (given["nvlinks"], rate, text)


@pytest.mark.parametrize(
    ("generation", "lanes", "rate"),
    # As data sheets round them: x16 of generation 3 is 15.75, of 4 is 31.5, of 5 is 63 GB/s.
    [(1, 16, 4.0), (2, 16, 8.0), (3, 16, 15.75), (4, 16, 31.5), (4, 8, 15.75), (5, 16, 63.0), (6, 16, 121.0)],
)
def test_pcie(libraries: Path, generation: int, lanes: int, rate: float) -> None:
    found, described = run(libraries, RATES, nvlinks=0, pcie_generation=generation, pcie_lanes=lanes)
    assert found["pcie_gb_per_second"] == pytest.approx(rate, abs=0.05)
    assert (found["nvlinks"], found["nvlink_version"], found["nvlink_gb_per_second"]) == (0, None, None)
    assert described == f"PCIe {generation} x{lanes} nominally {found['pcie_gb_per_second']:.1f} GB/s"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "unknown link"),
        ({"nvml": False}, "unknown link"),
        ({"nvml_error": 9}, "unknown link"),
        ({"pcie_generation": 5}, "unknown link"),
        ({"pcie_generation": 9, "pcie_lanes": 16}, "PCIe 9 x16 of unknown rate"),
    ],
)
def test_what_nvml_does_not_say_is_null(libraries: Path, given: dict[str, Any], text: str) -> None:
    found, described = run(libraries, RATES, **given)
    assert described == text
    assert (found["nvlink_gb_per_second"], found["pcie_gb_per_second"], found["nvlinks"]) == (None, None, None)
