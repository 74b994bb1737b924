"""Hierarchical partitioning: each node holds a second copy of the weights, so that layers are gathered within it.

ZeRO++ calls it hpZ (`zero_hpz_partition_size`). See: https://arxiv.org/abs/2306.10209, section 4.2.
"""

import json
import math
from typing import Any

import torch.distributed as dist

from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, judged


def hpz(context: RankContext, state: TrainingState) -> Outcome:
    """Check that with a second copy of the weights on each node the losses are those of a single process."""
    config = context.engine_config()
    config["zero_optimization"]["zero_hpz_partition_size"] = context.world_size // context.leg.nodes
    with loading.transformers_zero(config):
        state.model = loading.ready_model(context, context.source)
        training.start_engine(context, state, config)
        sample = training.own_sample(context)
        loss = samples.loss(state.engine, sample)
        state.engine.backward(loss)
        held, problems = _copy(context, state.model)  # in use now: each step drops it, and the next forward pass makes it
        state.engine.step()
        losses = [training.world_mean(context, loss.item())]
        losses += training.engine_steps(context, state, sample, training.RESUME_STEPS)
    expected = json.loads(context.workspace.plain_losses.read_text())
    worst = training.off_by(expected, losses)
    if not worst <= training.PARITY[context.dtype]:
        sentence = f"losses: expected {training.numbers(expected)} (single process), found {training.numbers(losses)}"
        problems.append(f"{sentence}; off by {worst:.2g}, at most {training.PARITY[context.dtype]:.0e} allowed")
    return judged(problems, f"{held:,} elements held of the node's copy, losses within {worst:.1g} of a single process")


def _copy(context: RankContext, model: Any) -> tuple[int, list[str]]:
    """Return how many elements this rank holds of its node's copy, and how that is not a part of one within the node."""
    ranks: list[int] = [0] * context.world_size
    dist.all_gather_object(ranks, context.node)
    own = [rank for rank, node in enumerate(ranks) if node == context.node]
    held, problems = 0, []
    for name, parameter in model.named_parameters():
        copy = parameter.ds_secondary_tensor
        padded = math.ceil(parameter.ds_numel / context.world_size) * context.world_size
        if copy is None or copy.numel() != padded // len(own):
            found = "none" if copy is None else f"{copy.numel():,}"
            problems.append(f"{name}: expected {padded // len(own):,} elements of its copy on each rank, found {found}")
        else:
            held += copy.numel()
        if (among := dist.get_process_group_ranks(parameter.ds_zero_param_process_group)) != own:
            problems.append(f"{name}: expected its copy on ranks {own} of node {context.node}, found it on {among}")
    return held, problems[:3]
