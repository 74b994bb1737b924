"""Measure how long `nox -s smoke` takes against its floor: one process that imports torch, transformers and deepspeed.

Both run in turn, so that what slows the machine slows both; the table shows medians and their ratio.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv

ENVIRONMENT = "qwen2.5-vl"
# Without a GPU driver DeepSpeed 0.15.4 cannot be imported beside triton; the smoke test hides it too.
FLOOR = "import sys; sys.modules['triton'] = None; import torch, transformers, deepspeed"
DEADLINE = 1800.0  # seconds


def seconds(command: list[str], environ: dict[str, str], cwd: Path) -> float:
    """Return the wall time of a command; raise subprocess.CalledProcessError with its output if it fails."""
    began = time.perf_counter()
    subprocess.run(command, env=environ, cwd=cwd, check=True, capture_output=True, text=True, timeout=DEADLINE)
    return time.perf_counter() - began


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="Run each this many times.")
    rounds = parser.parse_args().rounds
    checkout = Checkout.find(Path.cwd())
    python = virtualenv.ensure(checkout, locks.load(checkout, ENVIRONMENT))
    report = checkout.root / "build" / "benchmark"
    # The floor does not use GPUs, as the smoke test is measured on the CPU.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    smoke = [sys.executable, "-m", "nox", "-s", "smoke", "--", ENVIRONMENT, "--device", "cpu", "--report", str(report)]
    floors, smokes, peaks = [], [], []
    for number in range(rounds):
        floors.append(seconds([str(python), "-c", FLOOR], environ, checkout.root))
        smokes.append(seconds(smoke, environ, checkout.root))
        events = [json.loads(line) for line in (report / "logs" / "events.jsonl").read_text().splitlines()]
        peaks += [event["data"]["peak_bytes"] for event in events if "peak_bytes" in event.get("data", {})]
        print(f"round {number + 1}: floor {floors[-1]:.1f} s, smoke {smokes[-1]:.1f} s", file=sys.stderr)
    floor, whole = statistics.median(floors), statistics.median(smokes)
    each = statistics.median(one / other for one, other in zip(smokes, floors, strict=True))
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    print(f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, median of {rounds} rounds\n")
    print("| | seconds | times the floor |\n|---|---|---|")
    print(f"| import torch, transformers, deepspeed (the floor) | {floor:.1f} | 1 |")
    print(f"| `nox -s smoke`, ZeRO-2 and ZeRO-3, 2 ranks, all checks and controls | {whole:.1f} | {each:.1f} |")
    print(f"\nPeak RSS of a rank: {max(peaks) / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
