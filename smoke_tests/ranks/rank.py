"""What runs in each rank: connect to the supervisor, initialise the process, run the job's steps and report each."""

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from typing import Any

import torch

from smoke_tests import checks, jobs, stack
from smoke_tests.outcome import one_line
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Begin, Bye, Channel, End, Fatal
from smoke_tests.ranks.processes import die_with_parent, log_to

# Collectives time out this many seconds after the supervisor does: the supervisor sees the whole job, and requests stacks.
COLLECTIVE_MARGIN = 60.0


def run(brief: Brief) -> None:
    """Run the brief's job in this process, then exit with code 0: the supervisor judges by what it was sent."""
    die_with_parent()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor answers Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = int(os.environ.get("RANK", "0")) if brief.job.distributed else 0
    log_to(brief.logs / brief.job.name / f"rank{rank}.log")
    channel = Channel(brief.address, brief.job.name, rank, steps=tuple(step.name for step in brief.job.steps))
    stacks = Channel(brief.address, brief.job.name, rank, stacks=True)
    # Works in a rank that hangs in C: the handler is C too, and writes to the connection itself.
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    current = "start"
    try:
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        bench = _bench(brief, rank)
        for number, step in enumerate(brief.job.steps):
            current = step.name
            channel.send(Begin(number))
            started, busy = time.monotonic(), time.process_time()
            outcome = _perform(step, bench)
            channel.send(End(number, time.monotonic() - started, time.process_time() - busy, outcome))
        channel.send(Bye())
    except Exception as error:  # noqa: BLE001 - the one place where what no check expects ends
        traceback.print_exc()
        sys.stderr.flush()
        channel.send(Fatal(one_line(error), current))
    finally:
        # Exit at once: interpreter shutdown would wait for the other ranks, which hang on this one's open connections.
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
        made=brief.workspace.synthetic,
        work=brief.workspace.root,
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
