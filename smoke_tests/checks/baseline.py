"""The plain run: one process without DeepSpeed, with which the ranks are compared."""

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file

from smoke_tests import needs
from smoke_tests.checks import generation, loading, mixed_modality, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, judged, passed


def plain_run(context: RankContext, _: TrainingState) -> Outcome:
    """Run the ranks' batches in one process: greedy tokens, losses, and the gradients of the mixed-modality batch.

    A denoiser has no tokens.

    A large model does no optimizer step, and only its probes have gradients: one device holds its weights, and little more.
    """
    model = loading.ready_model(context, context.source)
    model.to(context.torch_device).train()
    large = needs.is_large(model.parameters())
    if large:
        _freeze_all_but_probes(context, model)
    problems, said = ([], {}) if context.family.denoiser else _greedy(context, model)
    if not context.family.denoiser:
        problems += _loss_problems(context, model)
    if context.family.mixes_modalities:
        _save_mixed_gradients(context, model)
    names = training.probes(context.family, [name for name, _ in model.named_parameters()])
    losses, gradients, moves = ([_first_loss(context, model)], [], []) if large else _train(context, model, names)
    context.workspace.plain_losses.write_text(json.dumps(losses))
    problems = training.loss_problems(losses) + problems
    return judged(problems, f"loss {training.numbers(losses)}", losses=losses, **said, gradients=gradients, moves=moves)


def _greedy(context: RankContext, model: Any) -> tuple[list[str], dict[str, Any]]:
    """Return what makes a model's greedy tokens useless for a comparison, and these with the number of clear ones."""
    tokens, gaps = generation.greedy(context, model)
    clear = generation.clear_tokens(gaps, context.dtype)
    problems = []
    if clear < generation.MIN_CLEAR:
        said = f"expected {generation.MIN_CLEAR} or more clear choices, found {clear}"
        limit = generation.CLEAR[context.dtype]
        problems.append(f"greedy tokens: {said}: their logits lead by {gaps[0]:.2g} {gaps[1]:.2g} …, a clear one by {limit}")
    if len(set(tokens)) < 3:
        problems.append(f"the greedy tokens {tokens} are too similar to tell two models apart")
    return problems, {"tokens": tokens, "clear": clear}


def _loss_problems(context: RankContext, model: Any) -> list[str]:
    """Return how a model's loss differs from its formula: the mean over the tokens that have a label.

    Every other loss is compared with this model's own, which a wrong one would pass.
    """
    sample = training.own_sample(context)
    with torch.no_grad():
        output = model(**sample)
    logits, labels = output.logits.float(), sample["labels"]
    if not context.family.encoder_decoder:  # where a decoder has its own input, the model has shifted it
        logits, labels = logits[:, :-1], labels[:, 1:]
    chosen = labels != samples.IGNORED
    expected = -logits[chosen].log_softmax(-1).gather(-1, labels[chosen].unsqueeze(-1)).mean().item()
    found = float(output.loss)
    if abs(found - expected) <= training.PARITY[context.dtype]:
        return []
    return [f"the model's loss of the first sample: expected {expected:.6g}, the mean over its labels, found {found:.6g}"]


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
        return sum(float(samples.loss(model, training.own_sample(context, rank))) for rank in ranks) / len(ranks)


def _train(context: RankContext, model: Any, probes: list[str]) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Do the ranks' optimizer steps; return their losses, and samples of the probes' first gradients and of how they moved."""
    batch = [training.own_sample(context, rank) for rank in range(context.leg.world_size)]
    names = [name for name, _ in model.named_parameters()]
    watch = Watch([names.index(probe) for probe in probes])
    losses = optimizer_steps(model, [batch] * training.TRAIN_STEPS, context.optimizer, watch=watch)
    moves = [[b - a for a, b in zip(old, new, strict=True)] for old, new in zip(watch.before, watch.after, strict=True)]
    return losses, watch.gradients, moves


class Watch:
    """Samples of some masters: their first gradients, and themselves before the first step and after the last."""

    def __init__(self, numbers: list[int]) -> None:
        """Watch the masters of these numbers."""
        self._numbers = numbers
        self.gradients: list[list[float]] = []
        self.before: list[list[float]] = []
        self.after: list[list[float]] = []

    def step(self, masters: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Do an optimizer step, and look before and after it."""
        chosen = [masters[number] for number in self._numbers]
        if not self.before:
            self.before = [training.sampled(master) for master in chosen]
            self.gradients = [training.sampled(master.grad) for master in chosen if master.grad is not None]
        optimizer.step()
        self.after = [training.sampled(master) for master in chosen]


def optimizer_steps(
    model: Any,
    batches: list[list[dict[str, torch.Tensor]]],
    make_optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    *,
    clipping: float | None = None,
    watch: Watch | None = None,
    schedule: Callable[[int], float] = lambda _: 1.0,
) -> list[float]:
    """Do one optimizer step on each batch of samples, and return the mean loss of each.

    As in DeepSpeed, the optimizer has fp32 masters in any dtype; `clipping` limits the norm of their gradients. `schedule`
    gives the learning rate of each step, from 0 on, as a multiple of the optimizer's.
    """
    masters = [parameter.detach().clone().float() for parameter in model.parameters()]
    optimizer = make_optimizer(masters)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    losses = []
    for batch in batches:
        parts = [samples.loss(model, sample) for sample in batch]
        losses.append(sum(part.item() for part in parts) / len(parts))
        (torch.stack(parts).sum() / len(parts)).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        if clipping is not None:
            torch.nn.utils.clip_grad_norm_(masters, clipping)
        (watch or Watch([])).step(masters, optimizer)
        rates.step()
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
    worst = training.off_by(expected, found)
    if not worst <= training.PARITY[dtype]:
        sentence = f"losses: expected {training.numbers(expected)} (single process), found {training.numbers(found)}"
        return failed(f"{sentence}; off by {worst:.2g}, at most {training.PARITY[dtype]:.0e} allowed")
    if len(expected) < training.TRAIN_STEPS:  # of a large model, which one process has not trained
        return passed(f"within {worst:.1g} of a single process in the first step")
    moves = reference.data["moves"], trained.data["moves"]
    pace = 1 + training.worst((pace - 1 for pace in training.paces(*moves)), key=abs)
    if not abs(pace - 1) <= training.PACE[dtype]:
        return failed(
            f"weights: moved {pace:.3g} times as far as in a single process, at most {training.PACE[dtype]} off 1 allowed"
        )
    moved = training.worst(training.unlike(*moves))
    if not moved <= training.MOVES[dtype]:
        limit = f"at most {training.MOVES[dtype]:.0e} allowed"
        return failed(f"weights: moved otherwise than in a single process, off by {moved:.2g} of the way; {limit}")
    return passed(f"losses within {worst:.1g} of a single process, weights moved {pace:.4g} times as far")
