"""Images and texts of usual sizes, through merged patches and windows: what the small samples of other checks do not reach."""

import json
from dataclasses import replace
from typing import Any

import torch

from smoke_tests.checks import baseline, loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples, tiny_checkpoint
from smoke_tests.outcome import Outcome, judged

# Absolute, of a loss near 7 over up to 2,048 tokens.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
TOKENS = 2048
# Pixels of the pictures of each sample, and the fewest tokens that it has.
SHAPES: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    (((448, 448),), 0),
    (((336, 196),), 0),
    (((112, 112), (196, 112)), 0),
    (((112, 112),), TOKENS),
)


def _sample(context: RankContext, number: int) -> dict[str, torch.Tensor]:
    sizes, tokens = SHAPES[number % len(SHAPES)]
    scene = samples.scenes(number + 1)[number]
    return context.on_device(samples.large_sample(context.family, context.processor, scene, sizes, tokens))


def _numbers(rank: int, ranks: int) -> list[int]:
    """Return the samples of a rank: all are trained on, and every rank has as many."""
    rounds = -(-len(SHAPES) // ranks)
    return [rank + ranks * turn for turn in range(rounds)]


def plain_run(context: RankContext, _: TrainingState) -> Outcome:
    """Write a checkpoint with merged patches and windows, and train on samples of usual size in one process."""
    workspace, family = context.workspace, context.family
    tiny_checkpoint.write_realistic(workspace.real_sizes, family, samples.corpus(), family.realistic_width)
    context = replace(context, source=workspace.real_sizes)
    model = loading.ready_model(context, context.source).to(context.torch_device).train()
    rounds = zip(*(_numbers(rank, context.leg.world_size) for rank in range(context.leg.world_size)), strict=True)
    batches = [[_sample(context, number) for number in numbers] for numbers in rounds]
    losses = baseline.optimizer_steps(model, batches, context.optimizer)
    workspace.real_losses.write_text(json.dumps(losses))
    longest = max(sample["labels"].shape[1] for batch in batches for sample in batch)
    problems = [] if longest >= TOKENS else [f"expected a sample of {TOKENS:,} tokens, found at most {longest:,}"]
    if family.vision and not _last_picture_counts(context, model):
        problems.append("the loss of a sample with two pictures is the same without the second one")
    return judged(problems, f"up to {longest:,} tokens, loss {training.numbers(losses)}")


def _last_picture_counts(context: RankContext, model: Any) -> bool:
    """Whether the end of the last picture's pixels, which is the end of them all, changes the loss of a sample with two."""
    sample = _sample(context, next(number for number, (sizes, _) in enumerate(SHAPES) if len(sizes) == 2))
    blank = sample["pixel_values"].clone()
    flat = blank.view(-1)
    flat[-(flat.numel() // 8) :] = 0
    with torch.no_grad():
        losses = [float(model(**sample | {"pixel_values": pixels}).loss) for pixels in (sample["pixel_values"], blank)]
    return losses[0] != losses[1]


def real_sizes(context: RankContext, state: TrainingState) -> Outcome:
    """Check that training on samples of usual size has the losses of a single process."""
    context = replace(context, source=context.workspace.real_sizes)
    state.model = loading.ready_model(context, context.source)
    training.start_engine(context, state)
    losses = []
    for number in _numbers(context.rank, context.world_size):
        losses += training.engine_steps(context, state, _sample(context, number), 1)
    expected = json.loads(context.workspace.real_losses.read_text())
    worst = training.off_by(expected, losses)
    said = f"loss {training.numbers(losses)}, within {worst:.1g} of a single process"
    if worst <= TOLERANCE[context.dtype]:
        return judged([], said)
    return judged([f"losses: expected {training.numbers(expected)} (single process), found {training.numbers(losses)}"], said)
