"""A rank holds its share of the parameters and no more."""

import re
from pathlib import Path

import torch

from smoke_tests.checks import loading
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged


def memory(context: RankContext, state: TrainingState) -> Outcome:
    """Check that under ZeRO-3 this rank holds exactly its share of parameter elements; report its peak memory."""
    problems = loading.partition_problems(context, state.model)
    parameters = list(state.model.parameters())
    held = sum(getattr(p, "ds_tensor", p).numel() + (p.numel() if hasattr(p, "ds_tensor") else 0) for p in parameters)
    peaks = _peaks(context)
    said = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in peaks.items() if size is not None)
    detail = f"{held:,} parameter elements held, peak {said}"
    return judged(problems, detail, peaks=peaks, peak_bytes=next(iter(peaks.values())), elements=held)


def _peaks(context: RankContext) -> dict[str, int | None]:
    """Return this rank's peaks in bytes: on a GPU what torch allocated and reserved, and what NVML saw in use on the card.

    The last one has CUDA's context and NCCL's buffers in it, and other processes' memory; it is None where NVML is silent.
    """
    if context.device == "cpu":
        return {"RSS": _peak_rss()}
    seen = context.gpu_peak.bytes if context.gpu_peak else None
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(), "NVML": seen}


def _peak_rss() -> int:
    """Return this process's peak RSS in bytes, pages shared with its parent included. See: proc(5), VmHWM."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
