"""Collective operations give the right numbers."""

import functools
import statistics
import time
from collections.abc import Callable

import torch

from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged

# Bytes of the large tensors, about. Faults of a link between GPUs show at size, and gloo uses none, also on GPUs: it took 8 s
# for 64 MiB on two busy cores.
LARGE = {"nccl": 64 * 2**20, "gloo": 4 * 2**20}


def collectives(context: RankContext, _: TrainingState) -> Outcome:
    """Check that all_reduce, all_gather, reduce_scatter and broadcast give the numbers that arithmetic gives."""
    import deepspeed.comm as comm

    ranks, me, device = context.world_size, context.rank, context.torch_device
    size = 100_003  # no multiple of any buffer
    ramp = torch.arange(size, dtype=torch.float32, device=device)
    total = ranks * (ranks + 1) // 2
    problems = []

    def expect(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        wrong = int((found != expected).sum())
        if wrong:
            problems.append(f"{what}: {wrong} of {found.numel()} numbers are wrong")

    # Integers below 2^24 are exact in fp32, in whatever order they are added.
    scale = torch.arange(size, device=device).remainder(1000).to(torch.float32)
    reduced = scale * (me + 1)
    comm.all_reduce(reduced)
    expect("all_reduce", reduced, scale * total)

    gathered = torch.empty(ranks * size, device=device)
    comm.all_gather_into_tensor(gathered, ramp + me)
    expect("all_gather", gathered, torch.cat([ramp + rank for rank in range(ranks)]))

    scattered = torch.empty(size, device=device)
    comm.reduce_scatter_tensor(scattered, torch.cat([(scale + rank) * (me + 1) for rank in range(ranks)]))
    expect("reduce_scatter", scattered, (scale + me) * total)

    for source in range(ranks):
        sent = ramp + 7 if me == source else torch.zeros(size, device=device)
        comm.broadcast(sent, src=source)
        expect(f"broadcast from rank {source}", sent, ramp + 7)
    rates = _large(context, expect)
    said = ", ".join(f"{name} {rate:.2g} GB/s" for name, rate in rates.items())
    return judged(
        problems,
        f"4 collectives over {ranks} ranks, {context.leg.backend}; bf16, {LARGE[context.leg.backend] >> 20} MiB: {said}",
        rates=rates,
    )


def _large(context: RankContext, expect: Callable[[str, torch.Tensor, torch.Tensor], None]) -> dict[str, float]:
    """Do each collective with large tensors in bf16, as training does, and return name -> GB/s of its largest tensor.

    The rates are reported, and judged nowhere: this is one try without a warm-up. That of `broadcast` is over all sources.
    """
    import deepspeed.comm as comm

    ranks, size = context.world_size, LARGE[context.leg.backend] // 2 // context.world_size * context.world_size
    total = ranks * (ranks + 1) // 2
    # bf16 has 8 bits of mantissa: integers up to 256 are exact, in whatever order they are added.
    numbers = torch.arange(size, device=context.torch_device).remainder(max(2, 256 // total))
    numbers = numbers.to(torch.bfloat16)
    rates = {}
    reduced = numbers * (context.rank + 1)
    rates["all_reduce"] = _timed(context, lambda: comm.all_reduce(reduced))
    expect("all_reduce in bf16", reduced, numbers * total)
    gathered = torch.empty_like(numbers)
    own = numbers.view(ranks, -1)[context.rank].contiguous()
    rates["all_gather"] = _timed(context, lambda: comm.all_gather_into_tensor(gathered, own))
    expect("all_gather in bf16", gathered, numbers)
    scattered, mine = torch.empty_like(own), numbers * (context.rank + 1)
    rates["reduce_scatter"] = _timed(context, lambda: comm.reduce_scatter_tensor(scattered, mine))
    expect("reduce_scatter in bf16", scattered, own * total)
    of_sources = []
    for source in range(ranks):
        sent = numbers + 1 if context.rank == source else torch.zeros_like(numbers)
        of_sources.append(_timed(context, functools.partial(comm.broadcast, sent, src=source)))
        expect(f"broadcast from rank {source} in bf16", sent, numbers + 1)
    return rates | {"broadcast": statistics.harmonic_mean(of_sources)}


def _timed(context: RankContext, collective: Callable[[], object]) -> float:
    """Return GB/s of a collective of the large tensors."""
    began = time.monotonic()
    collective()
    if context.device == "cuda":
        torch.cuda.synchronize()
    return LARGE[context.leg.backend] / 1e9 / (time.monotonic() - began)
