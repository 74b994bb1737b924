"""What a report has of GPUs: cards without their UUIDs, what connects them, and the peak of their memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .. import stubs
from ..smoke.conftest import ROOT

EVIDENCE = """
import json
from smoke_tests.machine import evidence, visible_gpus

print(json.dumps(evidence.of_gpus(visible_gpus())))
"""

# The stub reads its variables at each call, so that the card's memory can change under the sampler.
PEAK = """
import json, os, threading, time
from smoke_tests.machine.sampler import PeakMemory

def rises_to(peak, size):
    until = time.monotonic() + 20
    while peak.bytes != size and time.monotonic() < until:
        threading.Event().wait(0.01)
    return peak.bytes

os.environ["STUB_USED_MIB"] = "100"
peak = PeakMemory("GPU-00000001-0000-4000-8000-000000000000").start()
found = [peak.bytes]
os.environ["STUB_USED_MIB"] = "700"
found.append(rises_to(peak, 700 << 20))
os.environ["STUB_USED_MIB"] = "300"
asked = PeakMemory("GPU-00000000-0000-4000-8000-000000000000").start().bytes
found += [asked, peak.bytes, PeakMemory("GPU-00000009-none").start().bytes, PeakMemory("MIG-7").start().bytes]
print(json.dumps(found))
"""


def run(libraries: Path, script: str, **given: Any) -> Any:
    """Run a script under the stubs with Python alone, and return what it printed."""
    environ = {"PATH": os.defpath, **stubs.environ(libraries, **given)}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(ended.stdout)


def validated(found: Any) -> Any:
    """Return what a report would have as `gpu`, which its schema has to allow."""
    schema = json.loads((ROOT / "smoke_tests" / "report.schema.json").read_text())
    jsonschema.validate(found, schema["properties"]["gpu"])
    return found


def test_cards_and_links(libraries: Path) -> None:
    found = validated(run(libraries, EVIDENCE, gpus=3, nvlinks=18, topology=40, driver="570.86.10", cuda=12080))
    assert (found["driver"], found["driver_cuda"]) == ("570.86.10", "12.8")
    assert [card["index"] for card in found["cards"]] == [0, 1, 2]
    card = found["cards"][0]
    assert (card["name"], card["capability"], card["memory_bytes"], card["mig"]) == ("Stub GPU", "9.0", 81559 << 20, False)
    assert len({card["uuid_sha256"] for card in found["cards"]}) == 3
    assert "GPU-0000" not in json.dumps(found)
    link = {"path": "NODE", "peer": True, "nvlinks": 18}
    assert found["links"] == [{"between": pair, **link} for pair in ([0, 1], [0, 2], [1, 2])]
    assert "problem" not in found


@pytest.mark.parametrize(
    ("given", "link"),
    [
        ({"topology": 10, "p2p": 1}, {"path": "PIX", "peer": False, "nvlinks": None}),
        ({"topology": 50, "nvlinks": 0}, {"path": "SYS", "peer": True, "nvlinks": 0}),
        ({"topology": 77}, {"path": "level 77", "peer": True, "nvlinks": None}),
    ],
)
def test_cards_without_nvlink_or_peer_access(libraries: Path, given: dict[str, Any], link: dict[str, Any]) -> None:
    assert validated(run(libraries, EVIDENCE, gpus=2, **given))["links"] == [{"between": [0, 1], **link}]


def test_only_the_gpus_that_the_run_saw(libraries: Path) -> None:
    script = f"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '2,0'\n{EVIDENCE}"
    found = validated(run(libraries, script, gpus=4))
    assert [card["index"] for card in found["cards"]] == [2, 0]
    assert [link["between"] for link in found["links"]] == [[0, 2]]


def test_without_nvml_the_report_says_so(libraries: Path) -> None:
    found = validated(run(libraries, EVIDENCE, nvml=False))
    assert found == {
        "driver": None,
        "driver_cuda": None,
        "cards": [],
        "links": [],
        "problem": "libnvidia-ml.so.1 not found",
    }


def test_the_peak_is_of_one_card_and_stays(libraries: Path) -> None:
    mib = 1 << 20
    assert run(libraries, PEAK, gpus=2) == [100 * mib, 700 * mib, 300 * mib, 700 * mib, None, None]
