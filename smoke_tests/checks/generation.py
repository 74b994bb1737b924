"""Greedy generation gives the same tokens partitioned and unpartitioned."""

from typing import Any

import torch

from smoke_tests.checks import training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, passed

NEW_TOKENS = 8
# The scene of the prompt is the family's, for which the synthetic checkpoint's choices are clear: in fp32 and bf16, the gap
# between the two best logits is at least 0.2 in the first two tokens. Of some scenes it is 0.006.
# A token is compared where its logit leads by this much; other kernels round otherwise. Measured: logits up to 7 differ by 0.3
# between fp32 and bf16 and by less between two runs in bf16, whose numbers near 7 are 0.03 apart.
CLEAR = {torch.float32: 0.01, torch.bfloat16: 0.1}
# With fewer tokens that are clear a comparison says nothing.
MIN_CLEAR = 2


def clear_tokens(gaps: list[float], dtype: torch.dtype) -> int:
    """Return how many tokens come before the first whose choice is not clear: those after it may be others."""
    return next((number for number, gap in enumerate(gaps) if gap < CLEAR[dtype]), len(gaps))


def greedy(context: RankContext, model: Any, **kwargs: Any) -> tuple[list[int], list[float]]:
    """Return the most likely tokens that `model` appends to a prompt, and by how much the logit of each leads."""
    scene = samples.scenes(context.family.clear_scene + 1)[-1]
    inputs = context.on_device(samples.prompt(context.family, context.processor, scene))
    kwargs |= {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    model.eval()
    with torch.no_grad():
        said = model.generate(**inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **kwargs)
    model.train()
    found: list[int] = said.sequences[0, -NEW_TOKENS:].tolist()
    best = [logits[0].float().topk(2).values for logits in said.logits]
    return found, [float(first - second) for first, second in best]


def generate(context: RankContext, state: TrainingState) -> Outcome:
    """Report the engine's greedy tokens before any training. `compare_tokens` checks them once the plain run has its own."""
    training.start_engine(context, state)
    tokens, _ = greedy(context, state.engine.module, synced_gpus=context.stage == 3)
    return passed(f"tokens {' '.join(map(str, tokens))}", tokens=tokens)


def compare_tokens(reference: Outcome, generated: Outcome) -> Outcome:
    """Compare the greedy tokens of a ZeRO engine with those of the unpartitioned model, `reference`."""
    clear = reference.data["clear"]
    expected, found = (outcome.data["tokens"][:clear] for outcome in (reference, generated))
    if found != expected:
        return failed(f"tokens: expected {expected} (unpartitioned model), found {found}")
    return passed(f"{len(found)} tokens equal those of the unpartitioned model")
