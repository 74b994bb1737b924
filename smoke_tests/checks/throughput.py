"""How fast training and collectives are. Never judged: a slow node is for people to see."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests import runtime
from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.machine import rates
from smoke_tests.outcome import Outcome, passed

SIZES = tuple(2**20 * 4**power for power in range(6))  # bytes: 1 MiB to 1 GiB
WARM_UP, ROUNDS = 2, 5
TRAINING_STEPS = 10


def _seconds(work: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Return the mean duration of `work` after a warm-up."""
    for _ in range(WARM_UP):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    _wait(device)
    return (time.perf_counter() - began) / rounds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bandwidths(device: torch.device, sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return collective -> size in bytes -> bus bandwidth in GB/s, which the slowest link of a ring bounds.

    See: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    world = dist.get_world_size()
    found: dict[str, dict[int, float]] = {"all_reduce": {}, "all_gather": {}}
    for size in sizes:
        elements = size // 2 // world * world
        whole = torch.zeros(elements, dtype=torch.bfloat16, device=device)
        part = whole[: elements // world].clone()
        reduced = _seconds(functools.partial(dist.all_reduce, whole), device, ROUNDS)
        gathered = _seconds(functools.partial(dist.all_gather_into_tensor, whole, part), device, ROUNDS)
        moved = 2 * elements * (world - 1) / world / 1e9
        found["all_reduce"][size] = 2 * moved / reduced
        found["all_gather"][size] = moved / gathered
    return found


def of_links(context: RankContext) -> dict[str, dict[int, float]]:
    """Return what `bandwidths` does where collectives use the links of GPUs.

    Those of gloo go through the host, at seconds for each of the largest tensors: nothing of a link shows in them.
    """
    over_links = context.leg.backend == "nccl" and context.world_size > 1
    return bandwidths(context.torch_device, SIZES) if over_links else {}


def throughput(context: RankContext, state: TrainingState) -> Outcome:
    """Report tokens/s, step time, and the bus bandwidth of collectives beside the nominal rate of the GPU's links."""
    state.model = loading.ready_model(context, context.source)
    training.start_engine(context, state)
    sample = training.own_sample(context)

    def step() -> None:
        state.engine.backward(state.engine(**sample).loss)
        state.engine.step()

    seconds = _seconds(step, context.torch_device, TRAINING_STEPS)
    tokens = sample["labels"].numel() * context.world_size / seconds
    measured = of_links(context)
    nominal = rates.of_gpu(runtime.gpu_uuid())  # after the collectives: an idle GPU lowers its generation of PCIe
    best = [f"{name} {max(by_size.values()):.1f} GB/s" for name, by_size in measured.items()]
    return passed(
        ", ".join([f"{tokens:,.0f} tokens/s, {seconds * 1e3:.1f} ms a step", *best, rates.described(nominal)]),
        tokens_per_second=tokens,
        step_seconds=seconds,
        bus_gb_per_second={name: {str(size): rate for size, rate in by_size.items()} for name, by_size in measured.items()},
        nominal=nominal,
    )
