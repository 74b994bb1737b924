"""Gradients that are reduced beside the backward pass, which is what `overlap_comm` does, are those that are reduced after it.

With streams, as on GPUs, a bucket can be read, or filled again, before its reduction has ended; see DeepSpeed's issues 5347,
5545 and 7188 (https://github.com/deepspeedai/DeepSpeed/issues/5545). Nothing then fails: the gradients are wrong.
"""

from typing import Any

import torch

from smoke_tests import needs
from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, judged

# Of a tensor's largest gradient. Both ways do the same sums: measured 0 on gloo, under both stages and in both precisions. On a
# GPU the backward pass of attention adds in no fixed order, and bf16 keeps 8 bits. A bucket that was not reduced gives 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
BUCKET = 500_000  # elements: small enough for several buckets, which take turns


def _gradients(context: RankContext, state: TrainingState, *, overlap: bool) -> dict[str, torch.Tensor]:
    """Return name -> gradient of one backward pass, averaged over the ranks; of a large model, those of the probes."""
    state.clear()
    state.model = loading.ready_model(context, context.source)
    config = context.engine_config()
    config["zero_optimization"] |= {"overlap_comm": overlap, "reduce_bucket_size": BUCKET}
    training.start_engine(context, state, config)
    if state.engine.zero_overlap_comm() is not overlap:
        raise RuntimeError(f"overlap_comm: expected {overlap}, DeepSpeed chose {not overlap}")
    state.engine.backward(samples.loss(state.engine, training.own_sample(context)))
    parameters: dict[str, Any] = dict(state.engine.module.named_parameters())
    large = needs.is_large(parameters.values())
    names = training.engine_probes(context, state.engine) if large else list(parameters)
    return training.full_gradients(state.engine, names)


def overlap_comm(context: RankContext, state: TrainingState) -> Outcome:
    """Check that gradients with overlap_comm are those without it."""
    expected = _gradients(context, state, overlap=False)
    found = _gradients(context, state, overlap=True)
    problems = training.gradient_problems(expected, training.engine_probes(context, state.engine))
    worst = 0.0
    for name, gradient in expected.items():
        if name not in found:
            problems.append(f"{name} got no gradient with overlap_comm")
            continue
        off = (found[name] - gradient).abs().max().item() / max(gradient.abs().max().item(), 1e-12)
        worst = max(worst, off)
        if not off <= (allowed := TOLERANCE[context.dtype]):
            said = f"with overlap_comm the gradient of {name} is off by {off:.2g} of its largest element"
            problems.append(f"{said}, at most {allowed:g} allowed")
    return judged(problems, f"{len(expected)} gradients within {worst:.1g} of those without overlap_comm", off=worst)
