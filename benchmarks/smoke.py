"""Measure how long `nox -s smoke` takes against its floor: one process that imports torch, transformers and deepspeed.

The floor, the smoke test and the smoke test with --all run in turn, so that what slows the machine slows all; the table shows
medians and ratios. On a machine that others use, too, it is the CPU seconds that can be compared. A run before the first round
compiles what --all compiles once.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv

ENVIRONMENT = "qwen2.5-vl"
# Without a GPU driver DeepSpeed 0.15.4 cannot be imported beside triton; the smoke test hides it too.
FLOOR = "import sys; sys.modules['triton'] = None; import torch, transformers, deepspeed"
DEADLINE = 1800.0  # seconds


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds by the clock, and CPU seconds of all its processes."""

    seconds: float
    cpu: float

    def __str__(self) -> str:
        """Say both."""
        return f"{self.seconds:.1f} s, {self.cpu:.1f} s of CPU"


def cost(command: list[str], environ: dict[str, str], cwd: Path) -> Cost:
    """Return the cost of a command; raise subprocess.CalledProcessError with its output if it fails."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environ, cwd=cwd, check=True, capture_output=True, text=True, timeout=DEADLINE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def row(name: str, found: list[Cost], floors: list[Cost]) -> str:
    """Return a row of the table: the medians of `found`, and of its ratios to the floor of the same round."""
    pairs = [*zip(found, floors, strict=True)]
    times = statistics.median(one.seconds / other.seconds for one, other in pairs)
    cpu = statistics.median(one.cpu / other.cpu for one, other in pairs)
    medians = statistics.median(one.seconds for one in found), statistics.median(one.cpu for one in found)
    return f"| {name} | {medians[0]:.1f} | {times:.1f} | {medians[1]:.1f} | {cpu:.1f} |"


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
    everything = [*smoke[:-1], str(report.with_name("benchmark-all")), "--all"]
    compiled = cost(everything, environ, checkout.root)
    floors, smokes, wholes, peaks = [], [], [], []
    for number in range(rounds):
        floors.append(cost([str(python), "-c", FLOOR], environ, checkout.root))
        smokes.append(cost(smoke, environ, checkout.root))
        events = [json.loads(line) for line in (report / "logs" / "events.jsonl").read_text().splitlines()]
        peaks += [event["data"]["peak_bytes"] for event in events if "peak_bytes" in event.get("data", {})]
        wholes.append(cost(everything, environ, checkout.root))
        measured = f"floor {floors[-1]}; smoke {smokes[-1]}; smoke --all {wholes[-1]}"
        print(f"round {number + 1}: {measured}", file=sys.stderr)
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    print(f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, median of {rounds} rounds\n")
    print("| | seconds | times the floor | CPU seconds | times the floor |\n|---|---|---|---|---|")
    print(row("import torch, transformers, deepspeed (the floor)", floors, floors))
    print(row("`nox -s smoke`, ZeRO-2 and ZeRO-3, 2 ranks, all checks and controls of a default run", smokes, floors))
    print(row("`nox -s smoke -- --all`, with what users train with", wholes, floors))
    print(f"\nThe first run with --all, which compiles DeepSpeed's ops: {compiled}")
    print(f"\nPeak RSS of a rank: {max(peaks) / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
