"""Measure what a run over nodes costs node 0, as the number of ranks grows: verdicts and report. Prints a Markdown table.

Every rank's outcome of every step of the whole plan is made up, sent through the rank channel's codec and judged, a step at a
time; the report is written. Runs in the Python of an environment unless it is started by one with torch.

    python benchmarks/cluster.py [RANKS...]
"""

import argparse
import importlib.util
import itertools
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

DEFAULT = (8, 64, 1024, 8192)
EXPECTATIONS = {"gloo_race": "present", "later_key_layout": "random"}
DEADLINE = 600.0  # seconds
RUNS = {"passed": (), "all ranks failed": ("--fail-after", "5")}


def batches(jobs: "list[Job]", fail_after: int | None) -> Iterator[tuple["Job", list[tuple[int, bytes]]]]:
    """Yield the job, and the ranks and lines, of what all ranks send at a time: as they begin, then with each step.

    After `fail_after` steps every rank fails one in its own words, and nothing follows.
    """
    from smoke_tests.outcome import Outcome, failed
    from smoke_tests.ranks.channel import End, Hello, encode

    steps = 0
    for job in jobs:
        ranks = range(job.processes)
        yield job, [(rank, encode(Hello(job.name, rank, 1000 + rank, node=rank // 8), 0.0)) for rank in ranks]
        for number, step in enumerate(job.steps):
            data = {"losses": [1.0, 0.9, 0.8], "gradients": {}} if step.name in ("train", "plain run") else {}
            fails = steps == fail_after and job.processes > 1
            if fails:
                outcomes = [failed(f"RuntimeError: lost rank {rank}; log: logs/{job.name}/rank{rank}.log") for rank in ranks]
            else:
                outcomes = [Outcome("passed", f"rank {rank} has seen what it was to see, within 1e-07", data) for rank in ranks]
            yield job, [(rank, encode(End(number, 0.1, 0.1, outcomes[rank]), 1.0)) for rank in ranks]
            if fails:
                return
            steps += job.processes > 1


def measure(ranks: int, fail_after: int | None = None) -> dict[str, Any]:
    """Return CPU seconds, bytes of the report and growth of the peak memory for a run of so many ranks, eight on each node."""
    from smoke_tests import plan, report
    from smoke_tests.legs import Leg
    from smoke_tests.ranks.channel import End, Receiver
    from smoke_tests.verdicts import Verdicts

    nodes = max(1, ranks // 8)
    planned = plan.make((2, 3), (Leg("gloo", ranks, 0, nodes),), "cpu", EXPECTATIONS)
    jobs = list(planned.jobs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdicts = Verdicts(jobs, planned, "fp32", lambda _: None)
    verdicts.places = {(job.name, rank): rank // 8 for job in jobs for rank in range(job.processes)}
    receivers = {(job.name, rank): Receiver() for job in jobs for rank in range(job.processes)}
    reading = judging = 0.0
    for job, lines in batches(jobs, fail_after):  # what the ranks spend on their lines is not counted
        began = time.process_time()
        heard = [(rank, found.message) for rank, line in lines for found in receivers[job.name, rank].feed(line)]
        read = time.process_time()
        for rank, message in heard:
            if isinstance(message, End):
                verdicts.add(job, message.step, rank, message.outcome, message.seconds)
        reading, judging = reading + read - began, judging + time.process_time() - read
    began = time.process_time()
    results = verdicts.finish("not reached: an earlier step of its job failed")
    with tempfile.TemporaryDirectory() as folder:
        report.write(Path(folder), document(ranks, nodes), results)
        sizes = {name: Path(folder, name).stat().st_size for name in report.FILES}
    return {
        "nodes": nodes,
        "messages": reading,
        "report_seconds": judging + time.process_time() - began,
        "bytes": sizes["report.json"],
        "page_bytes": sizes["report.html"],
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
    }


def document(ranks: int, nodes: int) -> dict[str, Any]:
    """Return what a report has beside its checks."""
    machine = {"architecture": "x86_64", "cpu": "made up", "cpus": 1, "memory_bytes": 1}
    return {
        "environment": "benchmark",
        "lock": {"requirements.txt": "0" * 64},
        "device": "cpu",
        "backend": "gloo",
        "precision": "fp32",
        "world_size": ranks,
        "versions": {},
        "not_run": [],
        "verdict": "passed",
        "checkpoint": "made",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "failure": "",
        "machine": machine,
        "nodes": [{"host": f"n{number}", "machine": machine} for number in range(nodes)],
    }


def main() -> None:
    """Measure each number of ranks in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ranks", nargs="*", type=int, default=DEFAULT)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fail-after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        # Not before: where DeepSpeed is built for the environment, its setup.py would import torch for this accelerator.
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        print(json.dumps(measure(options.one, options.fail_after)))
        return
    python = sys.executable
    if importlib.util.find_spec("torch") is None:
        from smokehouse.checkout import DEFAULT_ENVIRONMENT, Checkout
        from smokehouse.installs import virtualenv
        from smokehouse.locks import check

        checkout = Checkout(ROOT)
        python = str(virtualenv.ensure(checkout, check.load(checkout, DEFAULT_ENVIRONMENT)))
    print("| ranks | nodes | run | messages, CPU s | verdicts and report, CPU s | per 1,000 ranks | report | page | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for ranks, ends in itertools.product(options.ranks, RUNS):
        command = [python, __file__, "--one", str(ranks), *RUNS[ends]]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout)
        each = found["report_seconds"] / ranks * 1000
        print(
            f"| {ranks:,} | {found['nodes']:,} | {ends} | {found['messages']:.2f} | {found['report_seconds']:.2f} | "
            f"{each:.2f} | {found['bytes'] / 1e6:.1f} MB | {found['page_bytes'] / 1e6:.1f} MB | "
            f"{found['memory'] / 1e6:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
