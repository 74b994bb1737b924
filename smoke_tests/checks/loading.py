"""A checkpoint loads whole, under ZeRO and without it, bit for bit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smoke_tests import runtime
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.families import Family
from smoke_tests.outcome import Outcome, judged
from smokehouse_loader import assert_ready, compare, explain, inspect_checkpoint, load_model, ready, zero
from smokehouse_loader.checkpoint import Checkpoint
from smokehouse_loader.errors import shortened
from smokehouse_loader.keys import Conversion, Plan


@contextlib.contextmanager
def transformers_zero(config: dict[str, Any]) -> Iterator[None]:
    """Keep a `HfDeepSpeedConfig` alive: transformers partitions under ZeRO-3 only while one is referenced."""
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    live = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        del live
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def without_zero() -> Iterator[None]:
    """Have transformers load whole models, whatever configuration is alive."""
    from transformers.integrations import deepspeed

    live, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = live


def read_model(context: RankContext, path: Path) -> tuple[Any, dict[str, Any]]:
    """Load the checkpoint in `path` as the stack alone does; return the model and transformers' loading info."""
    return load_with(context.model_class, path, context.dtype)


def ready_model(context: RankContext, path: Path) -> Any:
    """Load the checkpoint in `path` with the loader, verified bit for bit, where loading is not what is tested."""
    precision = runtime.in_precision(context.dtype, context.family.package)
    model = load_model(path, model_class=context.model_class, verify="bits", **precision)
    assert_ready(model)
    return model


def load_with(loader: Any, path: Path, dtype: torch.dtype, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Load the checkpoint in `path` with the class `loader`; return the model and transformers' loading info."""
    package = loader.__module__.partition(".")[0]
    precision = runtime.in_precision(dtype, package)
    model, info = loader.from_pretrained(path, **precision, output_loading_info=True, **arguments)
    return model, info


def key_problems(info: dict[str, Any], unpublished: tuple[str, ...] = ()) -> list[str]:
    """Return the keys that transformers' loading info reports as missing, unexpected or mismatched, in words.

    Of those with a prefix of `unpublished`, which published checkpoints lack, none counts as missing.
    """
    problems = []
    reported = info | {"missing_keys": [key for key in info["missing_keys"] if not key.startswith(unpublished)]}
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [key if isinstance(key, str) else f"{key[0]} {list(key[1])} != {list(key[2])}" for key in sorted(reported[kind])]
        if keys:
            problems.append(f"{len(keys)} {kind.replace('_', ' ')} ({shortened(keys, 2)})")
    return problems


def partition_problems(context: RankContext, model: Any, *, partitioned: bool | None = None) -> list[str]:
    """Return how parameters differ from a partitioned model's (ZeRO-3) or a whole one's (otherwise), or are both.

    `partitioned` is what is expected where the stage does not decide it.
    """
    both = [p for p in model.named_parameters() if zero.is_partitioned(p[1]) and p[1].numel()]
    return [
        *map(str, ready.partitioning(model, requested=context.stage == 3 if partitioned is None else partitioned)),
        *(f"{name} holds {p.numel()} + {p.ds_tensor.numel()} of {p.ds_numel} elements" for name, p in both),
    ]


def load(context: RankContext, state: TrainingState) -> Outcome:
    """Check that `from_pretrained` partitions every parameter under ZeRO-3, and none under ZeRO-2."""
    state.model, state.loading_info = read_model(context, context.source)
    parameters = list(state.model.parameters())
    how = "partitioned" if context.stage == 3 else "whole"
    how += " on one rank" if context.world_size == 1 else ""
    workaround = ", waiting for gloo gathers" if context.stage == 3 and zero.has_gloo_race() else ""
    dtype = str(context.dtype).removeprefix("torch.")
    return judged(partition_problems(context, state.model), f"{len(parameters)} parameters {how}, {dtype}{workaround}")


def wrong_tensors(context: RankContext, model: Any, truth: Path) -> dict[str, str]:
    """Return published name -> what is wrong, for every tensor of `model` that differs from the checkpoint `truth` in any bit.

    Model and file may have different key layouts. The family says which tensor is which, not transformers, which the loader
    asks: a tensor that transformers loads in place of another must not go unnoticed. Those that published checkpoints lack may
    be absent from the file.
    """
    stored = inspect_checkpoint(truth)
    tensors = compare.state_of(model)
    published = context.family.published
    names = {published(name): name for name in tensors}
    plan = Plan()
    converted, read = _conversions(context.family, tensors, stored)
    plan.conversions += converted.values()
    for key in stored.tensors.keys() - read:
        name = published(key)
        plan.take(names.get(name, name), key)
    wrong = compare.wrong_tensors(model, stored, plan)
    wrong |= {key: f"is also in the file as {other}" for key, other in plan.doubled}
    absent = tensors.keys() - compare.filled(model, plan) - converted.keys()
    unpublished = context.family.unpublished
    wrong |= {name: "was not found in the file" for name in absent if not published(name).startswith(unpublished)}
    return {published(name): what for name, what in wrong.items()}


def _conversions(
    family: Family, tensors: dict[str, torch.Tensor], stored: Checkpoint
) -> tuple[dict[str, Conversion], set[str]]:
    """Return name -> how a model's tensor is put together from the file's, where they have another form; and the keys of these.

    Tensors that lack a part, or have a shape that they cannot have in either form, are not among them.
    """
    found: dict[str, Conversion] = {}
    for name, tensor in tensors.items():
        key, shape = family.published(name), zero.full_shape(tensor)
        for merged in family.merged:
            if key.endswith(merged.whole):
                parts = merged.keys(key, shape[0])
                if all(part in stored.tensors for of_expert in parts for part in of_expert):
                    found[name] = _joined(name, parts)
        if any(key.endswith(turned.name) for turned in family.turned) and key in stored.tensors:
            experts, *matrix = shape
            if stored.tensors[key].shape == (experts, *reversed(matrix)) != shape:
                found[name] = _transposed(name, key)
    return found, {source for conversion in found.values() for source in conversion.sources}


def _transposed(name: str, key: str) -> Conversion:
    """Return how the tensor `name` is made from the file's `key`, whose matrices are transposed."""
    return Conversion((key,), lambda given: {name: given[key].transpose(1, 2)})


def _joined(name: str, parts: list[list[str]]) -> Conversion:
    """Return how the tensor `name` of all experts is put together from the `parts` of each."""

    def apply(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([torch.cat([given[part] for part in of_expert]) for of_expert in parts])}

    return Conversion(tuple(part for of_expert in parts for part in of_expert), apply)


def weights(context: RankContext, state: TrainingState) -> Outcome:
    """Check that every tensor equals the file's bit for bit, and that no key is missing, unexpected or mismatched."""
    wrong = wrong_tensors(context, state.model, context.source)
    problems = key_problems(state.loading_info, context.family.unpublished)
    problems += [f"{name} {what}" for name, what in wrong.items()]
    count = len(inspect_checkpoint(context.source).tensors)
    return judged(problems, f"{count} tensors bit-equal, 0 keys missing, unexpected or mismatched", wrong=sorted(wrong))


def _has_first(family: Family, model: Any) -> bool:
    """Return whether a model has the first tensor, below whatever prefix: some drop a vision tower and report no key."""
    end = ".".join(family.first_tensor.split(".")[-3:])
    return any(f".{name}".endswith(f".{end}") or end.endswith(f".{name}") for name, _ in model.named_parameters())


def auto_classes(context: RankContext, _: TrainingState) -> Outcome:
    """Check which auto classes load the checkpoint whole, load it in part or refuse it, as these versions should."""
    import transformers

    expected = context.stack["expectations"]["auto_classes"]
    found = {}
    for name in expected:
        auto = getattr(transformers, name, None)
        if auto is None:
            found[name] = "absent"
            continue
        try:
            model, info = load_with(auto, context.source, context.dtype)
        except ValueError as error:
            if "wrong-auto-class" not in [known.failure.name for known in explain(error)]:
                raise
            found[name] = "refused"
            continue
        found[name] = (
            "whole" if _has_first(context.family, model) and not key_problems(info, context.family.unpublished) else "part"
        )
        del model
    problems = [
        f"{name}: expected {expected[name]} (measured.py or stack.toml), found {found[name]}"
        for name in expected
        if found[name] != expected[name]
    ]
    return judged(problems, ", ".join(f"{name} {how}" for name, how in found.items()), found=found)
