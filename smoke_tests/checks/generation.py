"""Greedy generation gives the same tokens partitioned and unpartitioned."""

from typing import Any

import torch

from smoke_tests.checks import training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, passed

NEW_TOKENS = 8


def greedy(context: RankContext, model: Any, **kwargs: Any) -> list[int]:
    """Return the most likely tokens that `model` appends to an image prompt."""
    inputs = context.on_device(samples.prompt(context.processor, samples.scenes(1)[0]))
    model.eval()
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **kwargs)
    model.train()
    found: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return found


def generate(context: RankContext, state: TrainingState) -> Outcome:
    """Report the engine's greedy tokens before any training. `compare_tokens` checks them once the plain run has its own."""
    training.start_engine(context, state)
    tokens = greedy(context, state.engine.module, synced_gpus=context.stage == 3)
    return passed(f"tokens {' '.join(map(str, tokens))}", tokens=tokens)


def compare_tokens(reference: Outcome, generated: Outcome) -> Outcome:
    """Compare the greedy tokens of a ZeRO engine with those of the unpartitioned model, `reference`."""
    expected, found = reference.data["tokens"], generated.data["tokens"]
    if found != expected:
        return failed(f"tokens: expected {expected} (unpartitioned model), found {found}")
    return passed(f"{len(found)} tokens equal those of the unpartitioned model")
