"""The plain run: one process without DeepSpeed, with which the ranks are compared."""

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file

from smoke_tests import needs
from smoke_tests.checks import generation, loading, mixed_modality, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, failed, judged, passed


def plain_run(context: RankContext, _: TrainingState) -> Outcome:
    """Run the ranks' batches in one process: greedy tokens, losses, and the gradients of the mixed-modality batch.

    A large model does no optimizer step, and only its probes have gradients: one device holds its weights, and little more.
    """
    model = loading.ready_model(context, context.source)
    model.to(context.torch_device).train()
    large = sum(parameter.numel() for parameter in model.parameters()) >= needs.SMALL_MODEL
    if large:
        _freeze_all_but_probes(context, model)
    tokens = generation.greedy(context, model)
    _save_mixed_gradients(context, model)
    losses = [_first_loss(context, model)] if large else _train(context, model)
    context.workspace.plain_losses.write_text(json.dumps(losses))
    problems = training.loss_problems(losses)
    if len(set(tokens)) < 3:
        problems.append(f"the greedy tokens {tokens} are too similar to tell two models apart")
    return judged(problems, f"loss {training.numbers(losses)}", losses=losses, tokens=tokens)


def _freeze_all_but_probes(context: RankContext, model: Any) -> None:
    parameters = dict(model.named_parameters())
    probes = training.probes(context.family, parameters)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in probes)


def _save_mixed_gradients(context: RankContext, model: Any) -> None:
    ranks = range(context.leg.world_size)
    for rank in ranks:
        (model(**context.on_device(mixed_modality.mixed_sample(context, rank))).loss / len(ranks)).backward()
    gradients = {name: p.grad.float().cpu().contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(gradients, context.workspace.mixed_gradients)
    model.zero_grad()


def _first_loss(context: RankContext, model: Any) -> float:
    """Return the mean loss of the ranks' batch before any optimizer step, one sample at a time."""
    ranks = range(context.leg.world_size)
    with torch.no_grad():
        return sum(float(model(**training.own_sample(context, rank)).loss) for rank in ranks) / len(ranks)


def _train(context: RankContext, model: Any) -> list[float]:
    """Do the ranks' optimizer steps and return their losses."""
    batch = [training.own_sample(context, rank) for rank in range(context.leg.world_size)]
    return optimizer_steps(model, [batch] * training.TRAIN_STEPS, context.optimizer)


def optimizer_steps(
    model: Any,
    batches: list[list[dict[str, torch.Tensor]]],
    make_optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    *,
    clipping: float | None = None,
) -> list[float]:
    """Do one optimizer step on each batch of samples, and return the mean loss of each.

    As in DeepSpeed, the optimizer has fp32 masters in any dtype; `clipping` limits the norm of their gradients.
    """
    masters = [parameter.detach().clone().float() for parameter in model.parameters()]
    optimizer = make_optimizer(masters)
    losses = []
    for batch in batches:
        parts = [model(**sample).loss for sample in batch]
        losses.append(sum(part.item() for part in parts) / len(parts))
        (torch.stack(parts).sum() / len(parts)).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        if clipping is not None:
            torch.nn.utils.clip_grad_norm_(masters, clipping)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)
        model.zero_grad()
    return losses


def compare_losses(reference: Outcome, trained: Outcome, dtype: torch.dtype) -> Outcome:
    """Compare a ZeRO run's global losses with those of a single process on the same global batch, `reference`.

    Of a large model, which one process cannot train, the reference has the first loss only.
    """
    expected = reference.data["losses"]
    found = trained.data["losses"][: len(expected)]
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    if not worst <= training.PARITY[dtype]:
        sentence = f"losses: expected {training.numbers(expected)} (single process), found {training.numbers(found)}"
        return failed(f"{sentence}; off by {worst:.2g}, at most {training.PARITY[dtype]:.0e} allowed")
    first = " in the first step" if len(expected) < training.TRAIN_STEPS else ""
    return passed(f"within {worst:.1g} of a single process{first}")
