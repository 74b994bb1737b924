"""Faults of GPUs that NVML and the kernel's log tell, with a stub NVML; the floors of their speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.machine import floors
from smoke_tests.machine.floors import Measured
from tests import stubs

ROOT = Path(__file__).parents[3]
# Each case in one process: the stub reads its variables at each call.
EACH = """
import dataclasses, json, os, sys
from smoke_tests.machine import gpus, health
found = []
for environ in json.loads(sys.argv[1]):
    os.environ.update(environ)
    found.append([dataclasses.asdict(one) for one in health.check(gpus.visible_gpus().gpus)])
    for name in environ:
        del os.environ[name]
print(json.dumps(found))
"""
GPU = "GPU 0 (Stub GPU)"
# Variables of the stub -> level, place and words of the only finding that is not ok; "" for none.
CASES: dict[str, tuple[dict[str, object], str, str]] = {
    "sound": ({"nvlinks": 18, "recovery": 0, "pcie_lanes": 16, "pcie_most_lanes": 16}, "ok", "all links active"),
    "a driver that says nothing of it": ({"ecc": -1}, "ok", "no uncorrected memory error"),
    "memory errors": ({"ecc": 3}, "fail", "3 uncorrected memory errors"),
    "row to remap": ({"remap_pending": 1}, "fail", "waits to be retired"),
    "row not remapped": ({"remap_failed": 1}, "fail", "remapping of a memory row failed"),
    "reset required": ({"recovery": 1}, "fail", "the driver requires a reset of the GPU"),
    "reboot required": ({"recovery": 2}, "fail", "the driver requires a reboot"),
    "unknown action": ({"recovery": 9}, "fail", "requires recovery action 9"),
    "a link down": ({"gpus": 2, "nvlinks": "17,18"}, "fail", "17 of 18 NVLinks are active, 18 on another GPU"),
    # As in a virtual machine with half of a board.
    "links to GPUs that are not here": ({"nvlinks": 4, "nvlinks_of_card": 6}, "warn", "4 of 6 NVLinks are active"),
    "all links of a smaller card": ({"nvlinks": 12, "nvlinks_of_card": 12}, "ok", "all links active"),
    "no link in use": ({"nvlinks": 0}, "ok", "all links active"),
    "narrow slot": ({"pcie_lanes": 4, "pcie_most_lanes": 16}, "warn", "PCIe x4 in use, x16 possible"),
    "hot": ({"throttled": 0x48}, "warn", "clocks are reduced (hardware slowdown, temperature)"),
    "idle": ({"throttled": 0x1}, "ok", "no uncorrected"),
}


def checked(libraries: Path, environs: list[dict[str, str]], **given: object) -> list[list[dict[str, str]]]:
    """Return what `health.check` finds under each of `environs`."""
    environ = {"PATH": os.defpath, **stubs.environ(libraries), **{name: str(v) for name, v in given.items()}}
    command = [sys.executable, "-c", EACH, json.dumps(environs)]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: list[list[dict[str, str]]] = json.loads(ended.stdout)
    return found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the stubs."""
    return stubs.build(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="module")
def each_case(libraries: Path) -> dict[str, list[dict[str, str]]]:
    """Return what is found in each case."""
    environs = [{f"STUB_{name.upper()}": str(value) for name, value in given.items()} for given, *_ in CASES.values()]
    return dict(zip(CASES, checked(libraries, environs, SMOKEHOUSE_DEV="/nowhere"), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_and_nothing_else(each_case: dict[str, list[dict[str, str]]], case: str) -> None:
    _, level, what = CASES[case]
    [one] = each_case[case]
    assert one["level"] == level
    assert what in one["what"]
    assert one["where"] == (GPU if level != "ok" else "GPU health")
    assert bool(one["fix"]) == (level != "ok")


def test_xid_errors_of_hardware_in_the_kernels_log(libraries: Path, tmp_path: Path) -> None:
    """Records as /dev/kmsg has them. See: Documentation/ABI/testing/dev-kmsg of Linux."""
    log = tmp_path / "kmsg"
    log.write_text(
        "4,1200,61000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.\n"
        "4,1201,62500000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.\n"
        "4,1202,63000000,-;NVRM: Xid (PCI:0000:5e:00): 31, pid=4242, name=python, MMU Fault\n"  # a mistake of a program
        "6,1203,64000000,-;usb 1-1: new device; NVRM: Xid (PCI\n"
    )
    [[one, fine]] = checked(libraries, [{}], SMOKEHOUSE_DEV=tmp_path)
    assert (one["level"], one["where"]) == ("warn", "GPU at 0000:3b:00")
    assert one["what"] == "Xid 79 (GPU has fallen off the bus), 2 times, last 62 s after boot"
    assert fine["level"] == "ok"


@pytest.mark.parametrize(
    ("cards", "all_reduce", "failures"),
    [
        ([("NVIDIA H100 80GB HBM3", 780.0)] * 8, 450.0, []),
        ([("NVIDIA H100 80GB HBM3", 780.0)] * 7 + [("NVIDIA H100 80GB HBM3", 500.0)], 450.0, ["GPU 7 (NVIDIA H100 80GB HBM3)"]),
        ([("NVIDIA H100 80GB HBM3", 780.0)] * 8, 200.0, ["NCCL"]),
        # No floor is known of four, nor of a card of another type; one that is half as fast as its neighbour is slow anyway.
        ([("NVIDIA H100 80GB HBM3", 780.0)] * 4, 200.0, []),
        ([("Some GPU", 10.0)], None, []),
        ([("Some GPU", 10.0), ("Some GPU", 4.0)], 5.0, ["GPU 1 (Some GPU)"]),
        ([("NVIDIA H100 PCIe", 500.0)], None, []),
        ([("NVIDIA A100-SXM4-80GB", 180.0)], None, ["GPU 0 (NVIDIA A100-SXM4-80GB)"]),
    ],
)
def test_floors(cards: list[tuple[str, float]], all_reduce: float | None, failures: list[str]) -> None:
    found = list(floors.judge(Measured(tuple(cards), all_reduce)))
    assert [one.where for one in found if one.level == "fail"] == failures
    assert [one.where for one in found if one.level == "ok"] == ([] if failures else ["speed"])


def test_each_row_of_the_floors_has_sources_and_no_row_hides_another() -> None:
    table: dict[str, Any] = json.loads((ROOT / "smoke_tests/machine/floors.json").read_text())
    assert set(table["sources"]) == {"nominal", "attained", "all_reduce"}
    names = {"NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA A10G": 70, "NVIDIA H200": 989, "NVIDIA H100 PCIe": 756}
    for name, nominal in names.items():
        found = floors.of(name)
        assert found
        assert found.gemm == pytest.approx(0.6 * nominal)


def test_a_measurement_that_fails_is_a_finding() -> None:
    """The tools' Python has no torch."""
    [one] = floors.check()
    assert (one.level, one.where) == ("fail", "speed")
    assert "No module named 'torch'" in one.what
