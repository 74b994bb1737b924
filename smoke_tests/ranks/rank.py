"""What runs in each rank: connect to the supervisor, initialise the process, run the job's steps and report each."""

import contextlib
import dataclasses
import faulthandler
import gc
import os
import secrets
import signal
import sys
import time
import traceback

import torch

from smoke_tests import families, runtime
from smoke_tests.checks import RankContext, TrainingState, dtype_of, loading
from smoke_tests.machine.sampler import PeakMemory
from smoke_tests.outcome import Outcome, one_line
from smoke_tests.plan import NODES, Step
from smoke_tests.ranks import flight
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.channel import Begin, Bye, Channel, End, Fatal
from smoke_tests.ranks.processes import die_with_parent, log_to
from smoke_tests.ranks.recorder import Recorder
from smokehouse_loader import zero

# Collectives time out this many seconds after the supervisor does: the supervisor sees the whole job, and requests stacks.
COLLECTIVE_MARGIN = 60.0


def run(brief: Brief) -> None:
    """Run the brief's job in this process, then exit with code 0: the supervisor judges by what it was sent."""
    die_with_parent()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor answers Ctrl-C
    for ends in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ends, signal.SIG_DFL)
    rank = int(os.environ.get("RANK", "0")) if brief.job.distributed else 0
    log_to(brief.logs / brief.job.name / f"rank{rank}.log")
    steps, key = tuple(step.name for step in brief.job.steps), secrets.token_hex(16)
    channel = Channel(brief.address, brief.job.name, rank, steps=steps, node=brief.node, key=key)
    stacks = Channel(brief.address, brief.job.name, rank, stacks=True, node=brief.node, key=key)
    # Works in a rank that hangs in C: the handler is C too, and writes to the connection itself.
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    current = "start"
    try:
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        context, state = _context(brief, rank), TrainingState()
        for number, step in enumerate(brief.job.steps):
            current = step.name
            channel.send(Begin(number))
            started, busy = time.monotonic(), time.process_time()
            outcome = _perform(step, dataclasses.replace(context, timeout=brief.limit(step)), state)
            channel.send(End(number, time.monotonic() - started, time.process_time() - busy, outcome))
        channel.send(Bye())
    except BaseException as error:  # noqa: BLE001 - the one place where what no check expects ends, an exit among it
        traceback.print_exc()
        sys.stderr.flush()
        channel.send(Fatal(one_line(error), current))
    finally:
        # Exit at once: interpreter shutdown would wait for the other ranks, which hang on this one's open connections.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _context(brief: Brief, rank: int) -> RankContext:
    """Initialise what the job needs of DeepSpeed and its process group, and return what the rank was given."""
    leg = brief.job.leg
    runtime.choose_accelerator(brief.device)
    if brief.job.distributed and brief.device == "cuda":
        runtime.choose_gpu(leg.gpus // leg.nodes)  # before DeepSpeed is imported, which asks the current GPU what it can do
    if brief.job.stage is not None or brief.job.distributed:
        runtime.import_deepspeed(brief.device)
    if brief.job.distributed:
        with contextlib.suppress(OSError):  # it names what hangs, and is no condition of a run
            Recorder(brief.workspace.collectives(brief.job.name, rank)).install()
        if leg.backend == "nccl":
            renamed = hasattr(torch._C._distributed_c10d, "_dump_fr_trace")
            os.environ |= flight.variables(brief.workspace.flight(brief.job.name), renamed=renamed)
        if brief.job.name == NODES and leg.backend == "nccl":  # NCCL says there which network it takes
            os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,GRAPH"}
            os.environ["NCCL_DEBUG_FILE"] = str(brief.logs / brief.job.name / f"nccl{rank}.log")
        runtime.init_distributed(leg.backend, brief.timeout + COLLECTIVE_MARGIN)
    runtime.quieten(families.get(brief.stack["model"]["family"]))
    workspace = dataclasses.replace(brief.workspace, leg=brief.job.folder)
    workspace.of_leg.mkdir(exist_ok=True)
    return RankContext(
        rank=rank,
        world_size=brief.job.processes,
        leg=leg,
        device=brief.device,
        dtype=dtype_of(brief.precision),
        stage=brief.job.stage or 0,
        source=brief.source,
        workspace=workspace,
        lock=brief.lock,
        image=brief.image,
        node=brief.node,
        network=brief.network,
        stack=brief.stack,
        timeout=brief.timeout,
        gpu_peak=PeakMemory(uuid).start() if brief.device == "cuda" and (uuid := runtime.gpu_uuid()) else None,
    )


def _perform(step: Step, given: RankContext, state: TrainingState) -> Outcome:
    """Run one step, with the gloo race's workaround and a live `HfDeepSpeedConfig` where it has them."""
    if not step.continues:
        state.clear()
    context = dataclasses.replace(
        given, dtype=dtype_of(step.precision) if step.precision else given.dtype, failure=step.failure
    )
    with contextlib.ExitStack() as stack:
        if context.stage and step.workaround:
            stack.enter_context(zero.safe_gathers())
        if context.stage and step.hf_config:
            stack.enter_context(loading.transformers_zero(context.engine_config()))
        return step.run(context, state)
