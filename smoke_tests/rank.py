"""What runs in each rank: connects to the supervisor, brings the process up, runs the job's steps and reports each."""

import contextlib
import dataclasses
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checks, jobs, stack
from .outcome import Channel, one_line
from .processes import die_with_parent, log_to

# A collective gives up this many seconds after the supervisor has: it sees the whole job, and asks for stacks.
COLLECTIVE_MARGIN = 60.0


@dataclass(frozen=True)
class Brief:
    """All that a rank has to be told, as it crosses a process border."""

    job: jobs.Job
    address: str
    device: str
    precision: str  # fp32 | bf16
    processes: int
    timeout: float  # seconds
    port: int  # of the rendezvous, 0 for any
    source: Path
    made: Path
    work: Path
    logs: Path
    lock: Path
    stack: dict[str, Any]


def run(brief: Brief) -> None:
    """Entry of every rank. Returns normally even when a check failed: the supervisor has been told, and judges."""
    die_with_parent()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the supervisor's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = int(os.environ.get("RANK", "0")) if brief.job.distributed else 0
    log_to(brief.logs / brief.job.name / f"rank{rank}.log")
    names = {"job": brief.job.name, "rank": rank}
    # With their names the event log, which counts steps, can be read by itself.
    channel = Channel(brief.address, names | {"steps": [step.name for step in brief.job.steps]})
    stacks = Channel(brief.address, names | {"stacks": True})
    # Works in a rank that hangs in C: the handler is C too, and writes to the supervisor's own socket.
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    current = "start"
    try:
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        bench = _bench(brief, rank)
        for number, step in enumerate(brief.job.steps):
            current = step.name
            channel.send("begin", step=number)
            started, busy = time.monotonic(), time.process_time()
            outcome = _perform(step, bench)
            spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - busy}
            channel.send("end", step=number, **spent, **dataclasses.asdict(outcome))
        channel.send("bye")
    except Exception as error:  # noqa: BLE001 - everything a check did not expect ends here, once
        traceback.print_exc()
        sys.stderr.flush()
        channel.send("fatal", check=current, error=one_line(error))
    finally:
        # Leave at once: a rank that waited for the others here would keep its connections open, and they would hang on it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _bench(brief: Brief, rank: int) -> checks.Bench:
    stack.choose_accelerator(brief.device)
    if brief.job.stage is not None:
        stack.import_deepspeed(brief.device)
    if brief.job.distributed:
        stack.init_distributed(brief.device, int(os.environ["LOCAL_RANK"]), brief.timeout + COLLECTIVE_MARGIN)
    from transformers.utils import logging

    logging.disable_progress_bar()
    return checks.Bench(
        rank=rank,
        world_size=brief.job.processes,
        processes=brief.processes,
        device=brief.device,
        dtype=checks.dtype_of(brief.precision),
        stage=brief.job.stage,
        source=brief.source,
        made=brief.made,
        work=brief.work,
        lock=brief.lock,
        stack=brief.stack,
    )


def _perform(step: jobs.Step, bench: checks.Bench) -> Any:
    if step.fresh:
        bench.drop()
    main = bench.dtype
    bench.dtype, bench.failure = step.dtype or main, step.failure
    try:
        with jobs.surroundings(step, bench):
            return step.run(bench)
    finally:
        bench.dtype = main
