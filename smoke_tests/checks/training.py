"""The engine trains: losses fall, and gradients reach the whole model."""

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.families import Family
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, judged

RESUME_STEPS = 2
TRAIN_STEPS = 1 + RESUME_STEPS
# Absolute, of a loss near 7. Measured over 1 to 4 ranks: at most 3e-6 in fp32 (two ranks under ZeRO-2 equal a single process to
# the bit) and 0.03 in bf16, with its 8 bits of mantissa.
PARITY = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def start_engine(context: RankContext, state: TrainingState) -> None:
    """Initialise a DeepSpeed engine with the loaded model."""
    import deepspeed

    optimizer = context.optimizer(state.model.parameters())
    state.engine, *_ = deepspeed.initialize(model=state.model, optimizer=optimizer, config=context.engine_config())
    state.engine.train()


def own_sample(context: RankContext, rank: int | None = None) -> dict[str, torch.Tensor]:
    """Return the sample that `rank` trains on; by default, this rank."""
    number = context.rank if rank is None else rank
    return context.on_device(samples.sample(context.family, context.processor, samples.scenes(number + 1)[number]))


def _world_mean(context: RankContext, value: float) -> float:
    """Return the mean over all ranks, in double precision."""
    total = torch.tensor([value], dtype=torch.float64, device=context.torch_device)
    dist.all_reduce(total)
    return float(total.item()) / context.world_size


def probes(family: Family, names: Iterable[str]) -> list[str]:
    """Return one weight at the bottom of the vision tower and one in the last layer of the language model."""
    vision = [name for name in names if family.published(name) == family.patch_embedding]
    return [vision[0], language_probes(family, names)[-1]]


def language_probes(family: Family, names: Iterable[str]) -> list[str]:
    """Return one weight in each layer of the language model."""
    return [name for name in names if name.endswith(family.language_probe) and not family.is_vision(name)]


def engine_probes(context: RankContext, engine: Any) -> list[str]:
    """Return the probes by their names in the engine's model."""
    return probes(context.family, [name for name, _ in engine.module.named_parameters()])


def full_gradients(engine: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Return name -> gradient averaged over the ranks, whole on every rank. Call it between backward and step."""
    from deepspeed.utils import safe_get_full_grad

    parameters = dict(engine.module.named_parameters())
    gradients = {name: safe_get_full_grad(parameters[name]) for name in names}
    return {name: gradient.detach().float().cpu() for name, gradient in gradients.items() if gradient is not None}


def engine_steps(
    context: RankContext, state: TrainingState, sample: dict[str, torch.Tensor], count: int, *, keep_gradients: bool = False
) -> list[float]:
    """Do `count` optimizer steps and return the global loss of each. Keeps the first step's probe gradients on request."""
    losses = []
    for step in range(count):
        loss = state.engine(**sample).loss
        state.engine.backward(loss)
        if keep_gradients and step == 0:
            state.gradients = full_gradients(state.engine, engine_probes(context, state.engine))
        state.engine.step()
        losses.append(_world_mean(context, loss.item()))
    return losses


def loss_problems(losses: list[float]) -> list[str]:
    """Return losses that are not finite or do not fall, in words."""
    if not all(map(math.isfinite, losses)):
        return [f"the loss is not finite: {numbers(losses)}"]
    if not all(later < earlier for earlier, later in itertools.pairwise(losses)):
        return [f"the loss does not fall: {numbers(losses)}"]
    return []


def gradient_problems(gradients: dict[str, torch.Tensor], names: list[str]) -> list[str]:
    """Return where the vision tower or the language model got no gradient, by their probes `names`."""
    problems = []
    for tower, name in zip(("vision tower", "language model"), names, strict=True):
        size = gradients[name].norm().item() if name in gradients else 0.0
        if not (math.isfinite(size) and size > 0):
            problems.append(f"no gradient reaches the {tower}: the norm for {name} is {size}")
    return problems


def numbers(values: list[float]) -> str:
    """Return losses as text."""
    return " ".join(f"{value:.6g}" for value in values)


def train(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the first optimizer step on image and text gives gradients in both towers."""
    state.losses = engine_steps(context, state, own_sample(context), 1, keep_gradients=True)
    return judged(gradient_problems(state.gradients, engine_probes(context, state.engine)), "gradients in both towers")


def train_on(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the loss is finite and falls in the two steps after the engine checkpoint, which `resume` has to repeat."""
    following = engine_steps(context, state, own_sample(context), RESUME_STEPS)
    if context.rank == 0:
        context.workspace.losses(context.stage).write_text(json.dumps(following))
    state.losses += following
    return judged(loss_problems(state.losses), f"loss {numbers(state.losses)}", losses=state.losses)
