"""The engine trains: losses fall, and gradients reach the whole model."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests.checks import memory
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.families import Family
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, judged, passed

RESUME_STEPS = 2
TRAIN_STEPS = 1 + RESUME_STEPS
# Absolute, of a loss near 7. Measured over 1 to 4 ranks: at most 3e-6 in fp32 (two ranks under ZeRO-2 equal a single process to
# the bit); over 1, 2, 3, 4 and 8 ranks in bf16, with its 8 bits of mantissa: 0.034 with one rank, 0.008 with eight.
PARITY = {torch.float32: 1e-5, torch.bfloat16: 0.05}


# Elements of each probe that are compared.
SAMPLE = 1024
# Limits: of the norm of a probe's gradient, of the way that three steps moved its weights, and of how far from 1 the pace is,
# which is the part of that way in the direction of a single process's. Measured in bf16 over 1, 2 and 8 ranks: gradients 0.05,
# moves 0.14 (where a gradient is near 0, Adam's step depends on its sign), pace 0.01. One lost gradient of eight gives 0.34, a
# learning rate of 1.2 times the right one a pace of 1.19.
GRADIENTS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
MOVES = {torch.float32: 1e-2, torch.bfloat16: 0.25}
PACE = {torch.float32: 1e-2, torch.bfloat16: 0.05}


def start_engine(context: RankContext, state: TrainingState, config: dict[str, Any] | None = None) -> None:
    """Initialise a DeepSpeed engine with the loaded model; its optimizer has what requires gradients, as the Trainer's does."""
    import deepspeed

    optimizer = context.optimizer(parameter for parameter in state.model.parameters() if parameter.requires_grad)
    state.engine, *_ = deepspeed.initialize(model=state.model, optimizer=optimizer, config=config or context.engine_config())
    state.engine.train()


def own_sample(context: RankContext, rank: int | None = None) -> dict[str, torch.Tensor]:
    """Return the sample that `rank` trains on; by default, this rank."""
    number = context.rank if rank is None else rank
    if context.family.denoiser:
        return context.on_device(samples.noisy(context.family, number, context.dtype))
    return context.on_device(samples.sample(context.family, context.processor, samples.scenes(number + 1)[number]))


def world_mean(context: RankContext, value: float) -> float:
    """Return the mean over all ranks, in double precision."""
    total = torch.tensor([value], dtype=torch.float64, device=context.torch_device)
    dist.all_reduce(total)
    return float(total.item()) / context.world_size


def probes(family: Family, names: Iterable[str]) -> list[str]:
    """Return the first weight, that of the vision tower where there is one, and one in the last layer of the language model."""
    first = [name for name in names if family.published(name) == family.first_tensor]
    return [first[0], language_probes(family, names)[-1]]


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
    context: RankContext, state: TrainingState, sample: dict[str, torch.Tensor], count: int, keep: Sequence[str] = ()
) -> list[float]:
    """Do `count` optimizer steps and return the global loss of each. Keeps the first gradients of the parameters in `keep`."""
    losses = []
    for step in range(count):
        loss = samples.loss(state.engine, sample)
        state.engine.backward(loss)
        if keep and step == 0:
            state.gradients = full_gradients(state.engine, list(keep))
            state.gradient_elements = memory.gradient_elements(state.engine)
        state.engine.step()
        losses.append(world_mean(context, loss.item()))
    return losses


def loss_problems(losses: list[float]) -> list[str]:
    """Return losses that are not finite or do not fall, in words."""
    if not all(map(math.isfinite, losses)):
        return [f"the loss is not finite: {numbers(losses)}"]
    if not all(later < earlier for earlier, later in itertools.pairwise(losses)):
        return [f"the loss does not fall: {numbers(losses)}"]
    return []


def gradient_problems(gradients: dict[str, torch.Tensor], names: list[str]) -> list[str]:
    """Return where the first weight or the last layer got no gradient, by their probes `names`."""
    problems = []
    for name in names:
        size = gradients[name].norm().item() if name in gradients else 0.0
        if not (math.isfinite(size) and size > 0):
            problems.append(f"no gradient reaches {name}: its norm is {size}")
    return problems


def off_by(reference: list[float], found: list[float]) -> float:
    """Return the largest difference of `found` from a reference; losses of a large model have a shorter one, of one step."""
    return worst(abs(a - b) for a, b in zip(reference, found[: len(reference)], strict=True))


def worst(values: Iterable[float], key: Callable[[float], float] = float) -> float:
    """Return the largest value by `key`, and NaN where one is: Python's max() passes over a NaN that does not come first."""
    found = list(values)
    return next(filter(math.isnan, found), max(found, key=key))


def numbers(values: list[float]) -> str:
    """Return losses as text."""
    return " ".join(f"{value:.6g}" for value in values)


def train(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the first optimizer step gives gradients at both ends of the model, the vision tower's where there is one."""
    names = engine_probes(context, state.engine)
    state.weights = master_samples(state.engine, names)
    state.losses = engine_steps(context, state, own_sample(context), 1, names)
    found = {name: sampled(gradient) for name, gradient in state.gradients.items()}
    return judged(gradient_problems(state.gradients, names), "gradients at both ends", gradients=list(found.values()))


def train_on(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the loss is finite and falls in the two steps after the engine checkpoint, which `resume` has to repeat."""
    following = engine_steps(context, state, own_sample(context), RESUME_STEPS)
    if context.rank == 0:
        context.workspace.engine_checkpoints(context.stage).mkdir(exist_ok=True)  # without `resume` nobody saved any
        context.workspace.losses(context.stage).write_text(json.dumps(following))
    state.losses += following
    after = master_samples(state.engine, list(state.weights))
    moves = [[b - a for a, b in zip(before, after[name], strict=True)] for name, before in state.weights.items()]
    return judged(loss_problems(state.losses), f"loss {numbers(state.losses)}", losses=state.losses, moves=moves)


def master_samples(engine: Any, names: list[str]) -> dict[str, list[float]]:
    """Return name -> a sample of the fp32 master weights, the same on every rank. Every rank must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = dict(engine.module.named_parameters())
    masters = {name: safe_get_full_fp32_param(parameters[name]) for name in names}
    # Without ZeRO in fp32 a parameter is its own master, and DeepSpeed returns None.
    return {name: sampled(parameters[name] if master is None else master) for name, master in masters.items()}


def sampled(tensor: torch.Tensor) -> list[float]:
    """Return `SAMPLE` elements, evenly spread over a tensor, so that processes can compare what is too large to send."""
    flat = tensor.detach().reshape(-1)
    spread = torch.linspace(0, flat.numel() - 1, min(SAMPLE, flat.numel()), dtype=torch.float64).long()
    found: list[float] = flat[spread.to(flat.device)].double().cpu().tolist()
    return found


def unlike(expected: list[list[float]], found: list[list[float]]) -> list[float]:
    """Return for each probe how far a sample is from the expected one, relative to that one's norm."""
    pairs = [
        (torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        for a, b in zip(expected, found, strict=True)
    ]
    return [float((b - a).norm() / a.norm().clamp(min=1e-30)) for a, b in pairs]


def paces(expected: list[list[float]], found: list[list[float]]) -> list[float]:
    """Return for each probe how far it moved in the expected direction, as a multiple of the expected way."""
    pairs = [
        (torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        for a, b in zip(expected, found, strict=True)
    ]
    return [float((a * b).sum() / (a * a).sum().clamp(min=1e-30)) for a, b in pairs]


def compare_gradients(reference: Outcome, first: Outcome, last: Outcome, dtype: torch.dtype) -> Outcome:
    """Compare the probes' gradients in the `first` step with those of a single process; return `last` where they agree."""
    if "gradients" not in reference.data or "gradients" not in first.data:
        return failed("not reached: no gradients to compare")
    if not reference.data["gradients"]:  # of a large model, whose gradients `mixed modality` compares
        return last
    off = worst(unlike(reference.data["gradients"], first.data["gradients"]))
    if not off <= GRADIENTS[dtype]:
        return failed(f"gradients: off by {off:.2g} of those of a single process, at most {GRADIENTS[dtype]:.0e} allowed")
    return passed(f"{last.detail}, gradients within {off:.1g} of those of a single process", **last.data)
