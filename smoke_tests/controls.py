"""The controls: failures done on purpose, to prove in every run that the checks would see them.

`bench.failure` is the control's entry in the loader's table, which knows what the failure says from version to version.
A control passes when the failure is seen as it should be, and where it should be. None of them needs the checkpoint under test:
they work on the made one or, where the shape of the patch embedding is not the point, on a slim one with a narrow vision tower.
All are in fp32, so that one flipped bit is one flipped bit.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from smokehouse_loader import inspect_checkpoint, zero

from .checks import Bench, key_problems, read_model, ready_model, wrong_tensors
from .fixtures import damage
from .outcome import Outcome, failed, one_line, passed
from .workspace import Workspace

# Measured: seen at the first try in most runs and at the third at the latest, over some thirty runs.
RACE_TRIES = 30


class _Heard(logging.Handler):
    """What transformers logs, in one text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


@contextlib.contextmanager
def _listening() -> Iterator[_Heard]:
    """What transformers says of a load goes to its log: all of a missing key, and in version 5 which shapes do not match."""
    heard = _Heard()
    logger = logging.getLogger("transformers")
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


def _telling(bench: Bench, text: str) -> list[str]:
    """The lines of a text that say what the table knows of the failure."""
    patterns = bench.failure.patterns if bench.failure else ()
    return [line for line in text.splitlines() if any(re.search(pattern, line) for pattern in patterns)]


def missing_key(bench: Bench) -> Outcome:
    """A tensor that is not in the file: nothing raises, so loading info, bits and the log have to show it."""
    with _listening() as heard:
        bench.model, info = read_model(bench, Workspace(bench.work).damaged(damage.MISSING_KEY))
    wrong = set(wrong_tensors(bench, Workspace(bench.work).slim))
    missing = {bench.family.published(name) for name in info["missing_keys"]}
    told = _telling(bench, heard.text)
    if told and missing == wrong == {bench.family.missing_key}:
        return passed(f"seen: {bench.family.missing_key} is missing and its bits are not the file's")
    return failed(f"not seen as such: {key_problems(info)}, wrong tensors {sorted(wrong)}, logged {told}")


def later_key_layout(bench: Bench) -> Outcome:
    """A checkpoint in the key layout of transformers 4.52, which earlier ones load without an error and leave random."""
    with _listening() as heard:
        bench.model, info = read_model(bench, Workspace(bench.work).damaged(damage.LATER_KEY_LAYOUT))
    wrong = wrong_tensors(bench, Workspace(bench.work).slim)
    told = _telling(bench, heard.text)
    if told and info["missing_keys"] and info["unexpected_keys"] and bench.family.patch_embedding in wrong:
        return passed(f"seen: {len(wrong)} tensors wrong, {'; '.join(key_problems(info))}")
    complaints = "; ".join(key_problems(info)) or "no key complained of"
    return failed(f"not seen: {len(wrong)} tensors wrong, {complaints}, logged {told}")


def flipped_bit(bench: Bench) -> Outcome:
    """One bit of the last element of one tensor: seen by the rank that holds it, and by no other under ZeRO-3."""
    bench.model, _ = read_model(bench, Workspace(bench.work).damaged(damage.FLIPPED_BIT))
    wrong = wrong_tensors(bench, Workspace(bench.work).slim)
    name = bench.family.flipped_tensor
    size = inspect_checkpoint(Workspace(bench.work).slim).tensors[name].elements
    owner = (size - 1) // zero.share(size, bench.world_size)
    if bench.stage == 3 and bench.rank != owner:
        return failed(f"rank {owner} holds the bit, and here differ {wrong}") if wrong else passed(f"held by rank {owner}")
    if set(wrong) == {name}:
        return passed(f"seen: {name} {wrong[name]}")
    return failed(f"not seen as such: wrong tensors {wrong}")


def _must_raise(bench: Bench, path: Path, about: str = "") -> Outcome:
    """Load `path`, which has to raise the failure; the error or what transformers logged before has a line `about` it."""
    with _listening() as heard:
        try:
            bench.model, _ = read_model(bench, path)
        except Exception as error:  # noqa: BLE001 - whatever comes is what this control is about
            return _expected(bench, error, about, heard.text)
    return failed("not seen: the checkpoint loaded without an error")


def _expected(bench: Bench, error: Exception, about: str, logged: str = "") -> Outcome:
    name = type(error).__name__
    for line in _telling(bench, f"{name}: {error}\n{logged}"):
        if re.search(about, line):
            said = " ".join(line.split())
            return passed(f"seen: {said if said.startswith(name) else f'{name}: {said}'}")
    return failed(f"another failure than the expected one: {one_line(error)}")


def _mismatch(name: str, in_file: Sequence[int], in_model: Sequence[int]) -> str:
    """What is in a line that says that a tensor has one shape in the file and another in the model."""
    shapes = [re.escape(f"torch.Size({list(shape)})") for shape in (in_file, in_model)]
    return rf"\b{re.escape(name)}\b.*{shapes[0]}.*{shapes[1]}"


def truncated_shard(bench: Bench) -> Outcome:
    """A shard that ends early, on every rank."""
    return _must_raise(bench, Workspace(bench.work).damaged(damage.TRUNCATED_SHARD))


def wrong_shape(bench: Bench) -> Outcome:
    """The patch embedding in another shape.

    Under ZeRO-3 only rank 0 copies from the file and raises. The others go on as if nothing were wrong, or lose their peer:
    there the comparison with the file has to see it.
    """
    path = Workspace(bench.work).damaged(damage.WRONG_SHAPE)
    name, shape = bench.family.patch_embedding, damage.wrong_patch_shape(bench.family)
    if bench.stage != 3 or bench.rank == 0:
        return _must_raise(bench, path, _mismatch(name, shape, bench.family.patch_shape))
    try:
        bench.model, _ = read_model(bench, path)
    except Exception as error:  # noqa: BLE001 - gloo, NCCL and DeepSpeed each lose a peer in their own words
        return passed(f"seen: {one_line(error)}")
    wrong = wrong_tensors(bench, path)
    if f"{shape} in the file" in wrong.get(name, ""):
        return passed(f"seen: loads without an error here, but {name} {wrong[name]}")
    return failed(f"not seen: loads without an error, wrong tensors {wrong}")


def _seed(bench: Bench) -> str:
    """The failure that this project began with."""
    return _mismatch(bench.family.patch_embedding, bench.family.patch_shape, [0])


def seed_failure_zero_init(bench: Bench) -> Outcome:
    """`deepspeed.zero.Init()` around `from_pretrained` with no live `HfDeepSpeedConfig`."""
    import deepspeed
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    with deepspeed.zero.Init(dtype=torch.float32):
        return _must_raise(bench, bench.made, _seed(bench))


def seed_failure_load_state_dict(bench: Bench) -> Outcome:
    """`load_state_dict` on a model that is partitioned already."""
    bench.model = ready_model(bench, bench.made)
    stored: dict[str, torch.Tensor] = {}
    for file in inspect_checkpoint(bench.made).files:
        stored |= load_file(file)
    state = {name: stored[bench.family.published(name)] for name in bench.model.state_dict()}
    try:
        bench.model.load_state_dict(state)
    except RuntimeError as error:
        return _expected(bench, error, _seed(bench))
    return failed("not seen: load_state_dict took the checkpoint")


def gloo_race(bench: Bench) -> Outcome:
    """ZeRO-3 loading over gloo without the workaround: silently wrong weights. A race, so it may take several tries."""
    import torch.distributed as dist

    for attempt in range(1, RACE_TRIES + 1):
        bench.drop()
        bench.model, _ = read_model(bench, bench.made)
        wrong = torch.tensor([float(len(wrong_tensors(bench, bench.made)))])
        own = int(wrong.item())
        dist.all_reduce(wrong)
        if wrong.item():
            return passed(f"seen at try {attempt}: {own} tensors silently wrong on this rank, {int(wrong.item())} in all")
    return failed(f"not seen in {RACE_TRIES} tries; where the race is fixed, write gloo_race = 'fixed' in stack.toml")
