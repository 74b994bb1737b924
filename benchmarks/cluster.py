"""Measure what a run over nodes costs node 0, as the number of ranks grows: verdicts and report. Prints a Markdown table.

Every rank's outcome of every step of the whole plan is made up, sent through the rank channel's codec and judged; the report is
written. Runs in the Python of an environment unless it is started by one with torch.

    python benchmarks/cluster.py [RANKS...]
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports torch
    from smoke_tests.plan import Job

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

DEFAULT = (8, 64, 1024, 8192)
EXPECTATIONS = {"gloo_race": "present", "later_key_layout": "random"}
DEADLINE = 600.0  # seconds


def sent(job: "Job") -> Iterator[tuple[int, int, bytes]]:
    """Yield step, rank and line for what the ranks of a job send, all of a step and then of the next one."""
    from smoke_tests.outcome import Outcome
    from smoke_tests.ranks.channel import End, Hello, encode

    for rank in range(job.processes):
        yield 0, rank, encode(Hello(job.name, rank, 1000 + rank, node=rank // 8), 0.0)
    for number, step in enumerate(job.steps):
        data = {"losses": [1.0, 0.9, 0.8], "gradients": {}} if step.name in ("train", "plain run") else {}
        for rank in range(job.processes):
            outcome = Outcome("passed", f"rank {rank} has seen what it was to see, within 1e-07", data)
            yield number, rank, encode(End(number, 0.1, 0.1, outcome), 1.0)


def measure(ranks: int) -> dict[str, Any]:
    """Return CPU seconds, bytes of the report and growth of the peak memory for a run of so many ranks, eight on each node."""
    from smoke_tests import plan, report
    from smoke_tests.legs import Leg
    from smoke_tests.ranks.channel import End, Receiver
    from smoke_tests.verdicts import Verdicts

    nodes = max(1, ranks // 8)
    planned = plan.make((2, 3), (Leg("gloo", ranks, 0, nodes),), "cpu", EXPECTATIONS)
    jobs = list(planned.jobs)
    lines = [(job, number, rank, line) for job in jobs for number, rank, line in sent(job)]  # which ranks spend
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    verdicts = Verdicts(jobs, planned, "fp32", lambda _: None)
    verdicts.places = {(job.name, rank): rank // 8 for job in jobs for rank in range(job.processes)}
    receivers = {(job.name, rank): Receiver() for job in jobs for rank in range(job.processes)}
    heard = [
        (job, number, rank, found.message)
        for job, number, rank, line in lines
        for found in receivers[job.name, rank].feed(line)
    ]
    read = time.process_time()
    for job, number, rank, message in heard:
        if isinstance(message, End):
            verdicts.add(job, number, rank, message.outcome, message.seconds)
    results = verdicts.finish("not reached")
    document: dict[str, Any] = {"environment": "benchmark", "lock": {"requirements.txt": "0" * 64}, "device": "cpu"}
    document |= {
        "backend": "gloo",
        "precision": "fp32",
        "world_size": ranks,
        "versions": {},
        "not_run": [],
        "verdict": "passed",
    }
    document |= {"checkpoint": "made", "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "failure": ""}
    document["machine"] = {"architecture": "x86_64", "cpu": "made up", "cpus": 1, "memory_bytes": 1}
    document["nodes"] = [{"host": f"n{number}", "machine": document["machine"]} for number in range(nodes)]
    with tempfile.TemporaryDirectory() as folder:
        report.write(Path(folder), document, results)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    ended = time.process_time()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "ranks": ranks,
        "nodes": nodes,
        "checks": len(results),
        "messages": read - began,
        "report_seconds": ended - read,
        "bytes": size,
        "memory": grown,
    }


def main() -> None:
    """Measure each number of ranks in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ranks", nargs="*", type=int, default=DEFAULT)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    python = sys.executable
    if importlib.util.find_spec("torch") is None:
        from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
        from smokehouse.installs import virtualenv
        from smokehouse.locks import check

        checkout = Checkout(ROOT)
        python = str(virtualenv.ensure(checkout, check.load(checkout, DEFAULT_ENVIRONMENT)))
    print("| ranks | nodes | messages, CPU s | verdicts and report, CPU s | per 1,000 ranks | report | memory |")
    print("|---|---|---|---|---|---|---|")
    for ranks in options.ranks:
        command = [python, __file__, "--one", str(ranks)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout)
        each = found["report_seconds"] / ranks * 1000
        print(
            f"| {ranks:,} | {found['nodes']:,} | {found['messages']:.2f} | {found['report_seconds']:.2f} | {each:.2f} | "
            f"{found['bytes'] / 1e6:.1f} MB | {found['memory'] / 1e6:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
