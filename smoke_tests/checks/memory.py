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
    peak = torch.cuda.max_memory_allocated() if context.device == "cuda" else _peak_rss()
    kind = "VRAM" if context.device == "cuda" else "RSS"
    detail = f"{held:,} parameter elements held, peak {kind} {peak / 2**30:.2f} GiB"
    return judged(problems, detail, peak_bytes=peak, elements=held)


def _peak_rss() -> int:
    """Return this process's peak RSS in bytes, pages shared with its parent included. See: proc(5), VmHWM."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
