"""A rank holds its share of parameters, gradients and optimizer state, and no more."""

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests.checks import loading
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged


def memory(context: RankContext, state: TrainingState) -> Outcome:
    """Check that this rank holds its share of parameters (ZeRO-3), gradients and optimizer state; report its peak memory."""
    problems = stage_problems(context, state) + loading.partition_problems(context, state.model)
    shares, unshared = share_problems(context, state)
    problems += unshared + state_problems(state.engine)
    parameters = list(state.model.parameters())
    held = sum(getattr(p, "ds_tensor", p).numel() + (p.numel() if hasattr(p, "ds_tensor") else 0) for p in parameters)
    peaks = _peaks(context)
    said = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in peaks.items() if size is not None)
    detail = f"{held:,} parameter elements held, {shares}, peak {said}"
    return judged(problems, detail, peaks=peaks, peak_bytes=next(iter(peaks.values())), elements=held)


def stage_problems(context: RankContext, state: TrainingState) -> list[str]:
    """Return how the engine's own ZeRO stage differs from the one under test."""
    found = int(state.engine.zero_optimization_stage())
    return [] if found == context.stage else [f"expected ZeRO stage {context.stage}, the engine runs {found}"]


def share_problems(context: RankContext, state: TrainingState, straddling: int = 0) -> tuple[str, list[str]]:
    """Return the elements of gradients, masters and moments that this rank holds in words, and what is not a share.

    Both stages partition them: a rank holds one part in `world_size`, with the padding of each partition, and all ranks
    together hold every element. ZeRO-1 keeps whole gradients, and without ZeRO everything is whole. A rank may also hold
    `straddling` elements: of tensors that lie across the borders of its partition, where those are kept whole.
    """
    parameters = list(state.model.parameters())
    whole = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    masters, moments = optimizer_elements(state.engine)
    held = {"gradient": (state.gradient_elements, whole), "master": (masters, whole), "moment": (moments, 2 * whole)}
    problems = []
    for what, (found, of_all) in held.items():
        padding = 2 * (len(parameters) + 2 * context.world_size)
        together = torch.tensor([found], dtype=torch.float64, device=context.torch_device)
        dist.all_reduce(together)
        if found > of_all / context.world_size + padding + straddling:
            problems.append(f"{found:,} {what} elements held, a rank's share of {of_all:,} is {of_all // context.world_size:,}")
        elif together.item() < of_all:
            problems.append(f"{int(together.item()):,} {what} elements held on all ranks, expected {of_all:,}")
    return ", ".join(f"{found:,} {what}" for what, (found, _) in held.items()), problems


def gradient_elements(engine: Any) -> int:
    """Return how many gradient elements this rank holds: whole ones, and those of its partition. Call it before the step."""
    kept = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    for of_group in (getattr(engine.optimizer, "averaged_gradients", None) or {}).values():
        kept += [of_group] if isinstance(of_group, torch.Tensor) else (of_group or [])
    return sum(gradient.numel() for gradient in kept if gradient is not None)


def accumulated_elements(engine: Any) -> int:
    """Return how many gradient elements this rank holds between the micro-batches of a step.

    From 0.19 on, DeepSpeed keeps whole tensors for its partition until the step, and refers to one of them in several places.
    """
    parameters = list(engine.module.parameters())
    kept = [getattr(parameter, name, None) for parameter in parameters for name in ("grad", "grad_accum")]
    for name in ("averaged_gradients", "all_grad_tensors"):
        for of_group in (getattr(engine.optimizer, name, None) or {}).values():
            kept += [of_group] if isinstance(of_group, torch.Tensor) else (of_group or [])
    return sum({tensor.data_ptr(): tensor.numel() for tensor in kept if tensor is not None}.values())


def optimizer_elements(engine: Any) -> tuple[int, int]:
    """Return how many elements of master weights and of moments this rank's optimizer holds, after its first step.

    torch's optimizers keep the state of a tensor under the tensor itself, which under ZeRO is this rank's flat partition.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq") if name in state]
    return sum(tensor.numel() for tensor in optimizer.state), sum(moment.numel() for moment in moments)


def state_problems(engine: Any) -> list[str]:
    """Return which masters or moments are in less than fp32, in which the small steps of training are lost."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [moment for state in optimizer.state.values() for moment in state.values()]
    kept = {"master weights": [*optimizer.state], "moments": moments}
    found = {
        what: {str(one.dtype) for one in tensors if isinstance(one, torch.Tensor) and one.numel() > 1} - {"torch.float32"}
        for what, tensors in kept.items()
    }
    return [f"{what}: expected torch.float32, found {', '.join(sorted(dtypes))}" for what, dtypes in found.items() if dtypes]


def _peaks(context: RankContext) -> dict[str, int | None]:
    """Return this rank's peaks in bytes: on a GPU what torch allocated and reserved, and what NVML saw in use on the card.

    The last one has CUDA's context and NCCL's buffers in it, and other processes' memory; it is None where NVML is silent.
    """
    if context.device == "cpu":
        return {"RSS": peak_rss()}
    seen = context.gpu_peak.bytes if context.gpu_peak else None
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(), "NVML": seen}


def peak_rss() -> int:
    """Return this process's peak RSS in bytes, pages shared with its parent included. See: proc(5), VmHWM."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
