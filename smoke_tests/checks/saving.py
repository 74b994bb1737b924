"""Engine checkpoints resume, and consolidated weights load in plain transformers, bit for bit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, judged, passed

TAG = "smoke"
T = TypeVar("T")


def digests(context: RankContext, engine: Any) -> dict[str, str]:
    """Return name -> SHA-256 of each whole tensor of the engine's model; empty but on rank 0. Every rank must call it."""
    return of_whole_tensors(context, engine, digest)


def of_whole_tensors(context: RankContext, engine: Any, function: Callable[[torch.Tensor], T]) -> dict[str, T]:
    """Return name -> what `function` returns for each whole tensor of the engine's model; empty but on rank 0.

    Every rank must call it.
    """
    import deepspeed

    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=context.stage == 3):
            if context.rank == 0:
                found[name] = function(parameter)
    return found


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()


def save(context: RankContext, state: TrainingState) -> Outcome:
    """Save an engine checkpoint after the first step, and the digest of every tensor in it."""
    state.engine.save_checkpoint(context.workspace.engine_checkpoints(context.stage), tag=TAG)
    truth = digests(context, state.engine)
    if context.rank == 0:
        context.workspace.digests(context.stage).write_text(json.dumps(truth))
    # Where bf16 is the main precision no bf16 run of its own leaves the 16-bit weights.
    problems = save_16bit(context, state) if context.dtype == torch.bfloat16 else []
    return judged(problems, "saved")


def start_anew(context: RankContext, state: TrainingState) -> Outcome:
    """Start the engine that resumes, with a gradient for its own first step."""
    state.model = loading.ready_model(context, context.source)
    training.start_engine(context, state)
    state.engine.backward(samples.loss(state.engine, training.own_sample(context)))
    return passed("started")


def resume(context: RankContext, state: TrainingState) -> Outcome:
    """Check in fresh processes that the engine checkpoint loads into another engine, whose next two losses are as before.

    That engine takes a step of its own first, so that no weight, moment or counter that is not restored is right by chance.
    """
    folder = context.workspace.engine_checkpoints(context.stage)
    state.engine.step()
    loaded, _ = state.engine.load_checkpoint(folder, tag=TAG)
    if loaded is None:
        return failed(f"{folder}: DeepSpeed found no engine checkpoint")
    losses = training.engine_steps(context, state, training.own_sample(context), training.RESUME_STEPS)
    expected = json.loads(context.workspace.losses(context.stage).read_text())
    # Bit for bit on a CPU. CUDA's scatter kernels add in no fixed order, so there the last bits may differ.
    tolerance = 0.0 if context.device == "cpu" else training.PARITY[context.dtype] / 10
    off = [i for i, (found, wanted) in enumerate(zip(losses, expected, strict=True)) if abs(found - wanted) > tolerance]
    problems = [f"loss {i + 1} after the resume: expected {expected[i]!r}, found {losses[i]!r}" for i in off]
    return judged(problems, f"next losses {training.numbers(losses)}, equal", losses=losses)


def consolidated(context: RankContext, _: TrainingState) -> Outcome:
    """Check that the stage's consolidated weights load in the model's own package, bit-equal to the engine's.

    32-bit from the fp32 engine checkpoint, 16-bit as `save_16bit_model` of the bf16 run wrote them.
    """
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    workspace, stage = context.workspace, context.stage
    problems = []
    written = []
    source = workspace.engine_checkpoints(stage)
    if (source / TAG).is_dir():
        target = workspace.weights_32bit(stage)
        target.mkdir()  # the converter does not create it
        convert_zero_checkpoint_to_fp32_state_dict(str(source), str(target), tag=TAG)
        # The converter gives fp32 master weights; a bf16 engine's own weights are these, rounded.
        problems += _reload(context, target, context.dtype, workspace.digests(stage))
        written.append("32-bit")
    if workspace.weights_16bit(stage).is_dir():
        problems += _reload(context, workspace.weights_16bit(stage), torch.bfloat16, workspace.digests_16bit(stage))
        written.append("16-bit")
    return judged(problems, f"{' and '.join(written)} weights reload bit-equal in plain {context.family.package}")


def _reload(context: RankContext, folder: Path, dtype: torch.dtype, truth: Path) -> list[str]:
    """Return what is wrong with the state dict in `folder` when the model's package loads it; `truth` is a file of digests.

    diffusers reads weights under another name, and keeps some in fp32: rounding these to `dtype` changes none of its numbers.
    """
    (folder / "config.json").write_text((context.source / "config.json").read_text())
    if context.family.denoiser:
        for file in folder.glob("pytorch_model*"):
            file.rename(file.with_name(f"diffusion_{file.name}"))
    model, info = loading.load_with(context.model_class, folder, dtype)
    expected = json.loads(truth.read_text())
    found = {name: digest(parameter.to(dtype)) for name, parameter in model.named_parameters()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"{folder.name}: {what}" for what in loading.key_problems(info) + [f"{name} differs" for name in differing]]


def save_16bit(context: RankContext, state: TrainingState) -> list[str]:
    """Save the engine's 16-bit weights and their digests for `consolidated`; return problems in words."""
    saved = state.engine.save_16bit_model(str(context.workspace.weights_16bit(context.stage)))
    truth = digests(context, state.engine)
    if context.rank == 0:
        context.workspace.digests_16bit(context.stage).write_text(json.dumps(truth))
    return [] if saved else ["save_16bit_model wrote nothing and returned False"]
