"""What differs for denoisers, which diffusers loads whole whatever ZeRO does: loading, partitioning and saving them."""

from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed as dist

from smoke_tests.checks import loading, saving, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged
from smokehouse_loader import assert_ready, inspect_checkpoint, load_model, save_model


def load(context: RankContext, state: TrainingState) -> Outcome:
    """Check that `from_pretrained` of diffusers loads whole models on every rank, also under ZeRO-3."""
    state.model, state.loading_info = loading.read_model(context, context.source)
    count = len(list(state.model.parameters()))
    problems = loading.partition_problems(context, state.model, partitioned=False)
    return judged(problems, f"{count} parameters whole, {str(context.dtype).removeprefix('torch.')}")


def initialize(context: RankContext, state: TrainingState) -> Outcome:
    """Check that `deepspeed.initialize` partitions every parameter under ZeRO-3, none otherwise, and changes no bit."""
    training.start_engine(context, state)
    return _sound(context, state)


def _sound(context: RankContext, state: TrainingState, in_fp32: Collection[str] = ()) -> Outcome:
    """Judge whether a model is partitioned as its stage requires, and bit-equal to the file.

    `in_fp32` are names of modules and parameters whose numbers are in fp32 whatever the precision of the run.
    """
    problems = loading.partition_problems(context, state.model)
    parameters = dict(state.model.named_parameters())
    for name, one in parameters.items():
        if one.dtype != (torch.float32 if {*name.split(".")} & {*in_fp32} else context.dtype):
            problems.append(f"{name} is in {one.dtype}")
    problems += [f"{name} {what}" for name, what in loading.wrong_tensors(context, state.model, context.source).items()]
    where = "partitioned" if context.stage == 3 else "whole"
    return judged(problems, f"{len(parameters)} parameters {where}, bit-equal")


def load_model_by_parts(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the loader's `load_model` leaves each rank its partition under ZeRO-3, bit-equal, before any engine.

    Partitions are all in one precision; a whole model has what its class keeps in fp32, until an engine takes it.
    """
    state.model = load_model(context.source, torch_dtype=context.dtype)
    assert_ready(state.model)
    return _sound(context, state, () if context.stage == 3 else state.model._keep_in_fp32_modules or ())


def save(context: RankContext, state: TrainingState) -> Outcome:
    """Check that the loader's `save_model` writes what the engine trained, and that diffusers alone reads it, bit-equal."""
    folder = context.workspace.saved(context.stage)
    save_model(state.engine, folder)
    expected = saving.digests(context, state.engine)
    problems = _unlike_saved(context, folder, expected) if context.rank == 0 else []
    dist.barrier()
    said = f"{len(expected)} tensors saved, bit-equal in plain {context.family.package}" if context.rank == 0 else "saved"
    return judged(problems, said)


def _unlike_saved(context: RankContext, folder: Path, expected: dict[str, str]) -> list[str]:
    """Return what is wrong with a saved model; `expected` has the digests of its tensors."""
    if broken := inspect_checkpoint(folder).problems:
        return [str(problem) for problem in broken]
    model, info = loading.load_with(context.model_class, folder, context.dtype)
    found = {name: saving.digest(parameter.to(context.dtype)) for name, parameter in model.named_parameters()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return loading.key_problems(info) + [f"{name} differs" for name in differing]
