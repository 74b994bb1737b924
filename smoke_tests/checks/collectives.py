"""Collective operations give the right numbers."""

import torch

from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged


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
    return judged(problems, f"4 collectives over {ranks} ranks, {context.leg.backend}")
