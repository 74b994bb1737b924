"""Failures injected on purpose.

`context.failure` is the control's entry in the loader's table, which knows the failure's messages from version to version.
None of them needs the checkpoint under test: they load a synthetic one whose first tensor has its real shape or, where that
does not matter, a slim one with fewer channels. All are in fp32, so that one flipped bit is one flipped bit.
"""

import contextlib
import dataclasses
import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from smoke_tests.checks import loading, memory, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import damage, samples
from smoke_tests.outcome import Outcome, failed, one_line, passed
from smokehouse_loader import inspect_checkpoint, zero
from smokehouse_loader.failures import BY_NAME
from smokehouse_loader.signs import lines_with

# Measured: lost at the first try in most runs and at the third at the latest, over some thirty runs.
RACE_TRIES = 30


class _LogCapture(logging.Handler):
    """What the model's package logs, in one text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


@contextlib.contextmanager
def _log(context: RankContext) -> Iterator[_LogCapture]:
    """Capture the log of the model's package: only there a missing key is reported, and in transformers 5 other shapes, too."""
    capture = _LogCapture()
    logger = logging.getLogger(context.family.package)
    logger.addHandler(capture)
    try:
        yield capture
    finally:
        logger.removeHandler(capture)


def _matching_lines(context: RankContext, text: str) -> list[str]:
    """Return the lines of a text that have what the table knows the failure by."""
    return lines_with(context.failure.signs, text) if context.failure else []


def missing_key(context: RankContext, state: TrainingState) -> Outcome:
    """Load a file that lacks a tensor: nothing raises, so loading info, bits and log have to show it."""
    with _log(context) as log:
        state.model, info = loading.read_model(context, context.workspace.damaged(damage.MISSING_KEY))
    wrong = set(loading.wrong_tensors(context, state.model, context.workspace.slim))
    keys = {context.family.published(name) for name in info["missing_keys"]}
    missing = {name for name in keys if not name.startswith(context.family.unpublished)}
    logged = _matching_lines(context, log.text)
    silent = context.family.denoiser and context.rank != 0  # diffusers logs on rank 0 alone
    if (logged or silent) and missing == wrong == {context.family.missing_key}:
        return passed(f"detected: {context.family.missing_key} is missing and its bits are not the file's")
    return failed(f"not detected: {loading.key_problems(info)}, wrong tensors {sorted(wrong)}, logged {logged}")


def later_key_layout(context: RankContext, state: TrainingState) -> Outcome:
    """Load a checkpoint with the keys of later versions, which leave what is renamed random, without an error."""
    with _log(context) as log:
        state.model, info = loading.read_model(context, context.workspace.damaged(damage.LATER_KEY_LAYOUT))
    wrong = loading.wrong_tensors(context, state.model, context.workspace.slim)
    logged = _matching_lines(context, log.text)
    complaints = "; ".join(loading.key_problems(info))
    stored = inspect_checkpoint(context.workspace.slim).tensors
    renamed = {name for name in stored if context.family.later(name) != name}
    if logged and info["missing_keys"] and info["unexpected_keys"] and renamed and renamed <= wrong.keys():
        return passed(f"detected: {len(wrong)} tensors wrong, {complaints}")
    return failed(f"not detected: {len(wrong)} tensors wrong, {complaints or 'no key reported'}, logged {logged}")


def flipped_bit(context: RankContext, state: TrainingState) -> Outcome:
    """Load a file with one flipped bit; where loading partitions the model, only the rank that holds it detects it."""
    state.model, _ = loading.read_model(context, context.workspace.damaged(damage.FLIPPED_BIT))
    wrong = loading.wrong_tensors(context, state.model, context.workspace.slim)
    name = context.family.flipped_tensor
    size = inspect_checkpoint(context.workspace.slim).tensors[name].elements
    owner = (size - 1) // zero.partition_size(size, context.world_size)
    if context.loads_partitioned and context.rank != owner:
        return (
            failed(f"expected a difference on rank {owner} only, found {wrong}") if wrong else passed(f"held by rank {owner}")
        )
    if set(wrong) == {name}:
        return passed(f"detected: {name} {wrong[name]}")
    return failed(f"not detected: wrong tensors {wrong}")


def _must_raise(context: RankContext, state: TrainingState, path: Path, about: str = "") -> Outcome:
    """Load `path`, which must raise the failure; its text, or what was logged before, has a line `about` it."""
    with _log(context) as log:
        try:
            state.model, _ = loading.read_model(context, path)
        except Exception as error:  # noqa: BLE001 - any error is this control's subject
            return _recognised(context, error, about, log.text)
    return failed("not detected: the checkpoint loaded without an error")


def _recognised(context: RankContext, error: Exception, about: str, logged: str = "") -> Outcome:
    """Pass where an error, its causes, or the log before it have a line that is known for this failure and is `about` it.

    With other versions the same mistake may end as another failure of the table, whose texts need not be about the same.
    """
    name = type(error).__name__
    text = "\n".join((f"{name}: {error}", logged, *traceback.format_exception(error)))
    lines = [line for line in _matching_lines(context, text) if re.search(about, line)]
    for other in context.failure.ends_as if context.failure else ():
        lines += lines_with(BY_NAME[other].signs, text)
    if lines:
        said = " ".join(lines[0].split())
        return passed(f"detected: {said if said.startswith(name) else f'{name}: {said}'}")
    return failed(f"expected a known message of {context.failure.name if context.failure else 'it'}, found {one_line(error)}")


def _mismatch(name: str, first: Sequence[int], second: Sequence[int]) -> str:
    """Return a pattern for lines that say that a tensor has one shape in the file and another in the model, in their order.

    transformers 4.51 to 4.55 load each module by itself, and have the tensor's name in that.
    """
    shapes = [re.escape(f"torch.Size({list(shape)})") for shape in (first, second)]
    names = "|".join(map(re.escape, (name, name.rpartition(".")[2])))
    return rf"\b(?:{names})\b.*{shapes[0]}.*{shapes[1]}"


def truncated_shard(context: RankContext, state: TrainingState) -> Outcome:
    """Load a truncated shard, which raises on every rank."""
    return _must_raise(context, state, context.workspace.damaged(damage.TRUNCATED_SHARD))


def wrong_shape(context: RankContext, state: TrainingState) -> Outcome:
    """Load a first tensor of the wrong shape.

    Where loading partitions the model, only rank 0 copies from the file and raises. The others continue without an error, or
    lose their peer: there the comparison with the file has to detect it.
    """
    path = context.workspace.damaged(damage.WRONG_SHAPE)
    name, shape = context.family.first_tensor, damage.wrong_first_shape(context.family)
    if not context.loads_partitioned or context.rank == 0:
        said = [shape, list(context.family.first_shape)]  # diffusers says first what it expected
        return _must_raise(context, state, path, _mismatch(name, *(reversed(said) if context.family.denoiser else said)))
    try:
        state.model, _ = loading.read_model(context, path)
    except Exception as error:  # noqa: BLE001 - gloo, NCCL and DeepSpeed each report a lost peer differently
        return passed(f"detected: {one_line(error)}")
    wrong = loading.wrong_tensors(context, state.model, path)
    if f"{shape} in the file" in wrong.get(name, ""):
        return passed(f"detected: loads without an error on this rank, but {name} {wrong[name]}")
    return failed(f"not detected: loads without an error, wrong tensors {wrong}")


def _seed(context: RankContext) -> str:
    """Return a pattern for the failure that this project began with."""
    return _mismatch(context.family.first_tensor, context.family.first_shape, [0])


def seed_failure_zero_init(context: RankContext, state: TrainingState) -> Outcome:
    """Call `from_pretrained` inside `deepspeed.zero.Init()` without a live `HfDeepSpeedConfig`."""
    import deepspeed
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    with deepspeed.zero.Init(dtype=torch.float32):
        return _must_raise(context, state, context.workspace.full_width, _seed(context))


def denoiser_inside_zero_init(context: RankContext, state: TrainingState) -> Outcome:
    """Call `from_pretrained` of diffusers inside `deepspeed.zero.Init()`, which it knows nothing of."""
    import deepspeed

    with deepspeed.zero.Init(dtype=torch.float32):
        return _must_raise(context, state, context.workspace.synthetic)


def saved_partitioned(context: RankContext, state: TrainingState) -> Outcome:
    """Save a partitioned model with `save_pretrained`: it says nothing, and no tensor of the file has any element."""
    folder = context.workspace.saved(context.stage).with_name("saved-partitioned")
    state.model = loading.ready_model(context, context.workspace.synthetic)
    if context.rank != 0:
        return passed("rank 0 saves")
    with _log(context) as log:
        state.model.save_pretrained(folder)
    written = inspect_checkpoint(folder)
    empty = [name for name, tensor in written.tensors.items() if not tensor.elements]
    known = [problem for problem in written.problems if context.failure and problem.failure == context.failure.name]
    if known and log.text == "" and len(empty) == len(list(state.model.parameters())):
        return passed(f"detected: saved without a word, {known[0].what}")
    return failed(f"not detected: {len(empty)} empty tensors, logged {log.text!r}, problems {written.problems}")


def seed_failure_load_state_dict(context: RankContext, state: TrainingState) -> Outcome:
    """Call `load_state_dict` on a model that is already partitioned: the loader loads the same checkpoint, whole."""
    full_width = context.workspace.full_width
    state.model = loading.ready_model(context, full_width)
    stored: dict[str, torch.Tensor] = {}
    for file in inspect_checkpoint(full_width).files:
        stored |= load_file(file)
    # A tensor that is tied to another is stored under the name of that one alone.
    published = {name: context.family.published(name) for name in state.model.state_dict()}
    tensors = {name: stored[key] for name, key in published.items() if key in stored}
    try:
        state.model.load_state_dict(tensors)
    except RuntimeError as error:
        return _recognised(context, error, _seed(context))
    return failed("not detected: load_state_dict accepted the checkpoint")


def gloo_race(context: RankContext, state: TrainingState) -> Outcome:
    """Load under ZeRO-3 over gloo without the workaround, which silently gives wrong weights; a race, so try several times."""
    import torch.distributed as dist

    checkpoint = context.workspace.full_width  # the race is lost where tensors are large
    for attempt in range(1, RACE_TRIES + 1):
        state.clear()
        state.model, _ = loading.read_model(context, checkpoint)
        wrong = torch.tensor([float(len(loading.wrong_tensors(context, state.model, checkpoint)))])
        own = int(wrong.item())
        dist.all_reduce(wrong)
        if wrong.item():
            return passed(f"detected at try {attempt}: {own} tensors silently wrong on this rank, {int(wrong.item())} in all")
    return failed(f"not detected in {RACE_TRIES} tries; where the race is fixed, set gloo_race = 'fixed' in stack.toml")


def zero1_in_place_of_zero2(context: RankContext, state: TrainingState) -> Outcome:
    """Run ZeRO-1 in place of ZeRO-2: between the micro-batches of a step every rank then holds all gradients."""
    return _of_another_stage(context, state, 1, ("gradient",))


def no_zero(context: RankContext, state: TrainingState) -> Outcome:
    """Run without ZeRO in place of ZeRO-2: every rank then holds all gradients, master weights and moments."""
    return _of_another_stage(context, state, 0, ("gradient", "master", "moment"))


def _of_another_stage(context: RankContext, state: TrainingState, stage: int, whole: tuple[str, ...]) -> Outcome:
    """Train with ZeRO `stage`; what the check `memory` looks at must show it, and that what is `whole` is no share.

    The stage under test is trained in the same way first, and must show nothing: else anything would be taken for a fault.
    """
    if said := _stage_problems(context, state, context.stage):
        return failed(f"expected no difference under ZeRO-{context.stage}, found {'; '.join(said)}")
    admitted, *said = _stage_problems(context, state, stage) or [""]
    missed = [what for what in whole if not any(f" {what} elements held, a rank's share of " in text for text in said)]
    if str(stage) in admitted and not missed and len(said) == len(whole):
        return passed(f"detected: {'; '.join([admitted, *said])}")
    return failed(
        f"not detected: {', '.join(missed) or 'the stage'}; found {'; '.join(filter(None, [admitted, *said])) or 'nothing'}"
    )


def _stage_problems(context: RankContext, state: TrainingState, stage: int) -> list[str]:
    """Do a step of two micro-batches with ZeRO `stage`, and return what is not as under the stage under test.

    ZeRO-1 and ZeRO-2 hold the same when the last backward pass of a step is over, so gradients are counted after the first.
    """
    state.clear()
    slim = dataclasses.replace(context, source=context.workspace.slim)
    state.model = loading.ready_model(slim, slim.source)
    config = slim.engine_config()
    config |= {"gradient_accumulation_steps": 2, "train_batch_size": 2 * context.world_size}
    config["zero_optimization"] |= {"stage": stage}
    training.start_engine(slim, state, config)
    sample = training.own_sample(slim)
    for micro_batch in range(2):
        state.engine.backward(samples.loss(state.engine, sample))
        if not micro_batch:
            state.gradient_elements = memory.accumulated_elements(state.engine)
        state.engine.step()
    # A partition has two borders, but for the first and the last.
    sizes = sorted((parameter.numel() for parameter in state.model.parameters()), reverse=True)
    _shares, problems = memory.share_problems(slim, state, sum(sizes[: min(2, context.world_size - 1)]))
    return memory.stage_problems(slim, state) + problems
