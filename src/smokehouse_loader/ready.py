"""Check that a model is ready for an engine to take over its parameters."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smokehouse_loader import compare, zero
from smokehouse_loader.checkpoint import Checkpoint
from smokehouse_loader.consensus import Consensus
from smokehouse_loader.errors import Finding, shortened
from smokehouse_loader.failures import fix_for
from smokehouse_loader.keys import Plan


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a model was loaded from."""

    checkpoint: Checkpoint
    plan: Plan
    tied: tuple[tuple[str, ...], ...]  # groups of names that the class ties to one tensor


ORIGINS: "weakref.WeakKeyDictionary[Any, Origin]" = weakref.WeakKeyDictionary()


def assert_ready(model: Any) -> None:
    """Raise LoadError, the same on every rank, if `model` is not ready for deepspeed.initialize.

    Every rank has to call it. Finds parameters on the meta device, empty ones that are not partitioned, ones that are
    partitioned but should not be and the reverse, untied ones that config.json ties, and, in a model of `load_model`, ones
    without any value of the checkpoint. Each finding gives the parameter and the order of calls that fixes it.
    """
    Consensus().agree([*problems(model), *_not_loaded(model)])


def problems(model: Any) -> list[Finding]:
    """Return what is wrong with this process and the parameters of `model`, their values not included."""
    return [*process_problems(), *partitioning(model, requested=zero.is_requested()), *_untied(model)]


def process_problems() -> Iterator[Finding]:
    """Yield what is wrong with this process rather than with a model, and breaks any load."""
    if zero.inside_init():
        what = "expected a load outside of it, found one inside a deepspeed.zero.Init that transformers did not enter"
        yield Finding("partitioned-before-load", "deepspeed.zero.Init", what, fix_for("partitioned-before-load"))
    if zero.config_was_dropped():
        what = "created, but garbage-collected since: nothing refers to it"
        yield Finding("dropped-config", "HfDeepSpeedConfig", what, fix_for("dropped-config"))


def partitioning(model: Any, *, requested: bool) -> Iterator[Finding]:
    """Yield how the partitioning of a model's parameters is not as expected, with ZeRO-3 `requested` or not."""
    meta, empty, whole, partitioned, resized = [], [], [], [], []
    for name, parameter in model.named_parameters():
        if zero.is_partitioned(parameter):
            if not requested:
                partitioned.append(name)
            elif not hasattr(parameter, "ds_tensor"):
                empty.append(name)
            elif parameter.numel() == 0 and not _has_partition_size(parameter):
                resized.append(name)
        elif parameter.is_meta:
            meta.append(name)
        elif tuple(parameter.shape) == (0,):
            empty.append(name)
        elif requested:
            whole.append(name)
    for failure, names, what in (
        ("left-on-meta", meta, "still on the meta device"),
        ("deepcopied-model", empty, "empty and not partitioned: a copy of a partitioned model, or never loaded"),
        ("not-partitioned", whole, "expected a partitioned parameter under ZeRO-3, found a whole one"),
        ("not-partitioned", partitioned, "expected a whole parameter without a live HfDeepSpeedConfig, found it partitioned"),
        ("not-partitioned", resized, "expected a partition of the size that ZeRO-3 gives each rank, found another size"),
    ):
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(failure, names[0], f"{what}{others}", fix_for(failure))


def _has_partition_size(parameter: Any) -> bool:
    expected = zero.partition_size(parameter.ds_numel, zero.partition_count(parameter))
    return int(parameter.ds_tensor.numel()) == expected


def _untied(model: Any) -> Iterator[Finding]:
    origin = ORIGINS.get(model)
    state = compare.state_of(model)
    for names in origin.tied if origin else _tied_embeddings(model, state):
        # transformers 5 keeps two tensors apart if the checkpoint has both of them.
        stored = [name for name in names if origin and name in origin.plan.renamed]
        if len(stored) < 2 and len({id(state[name]) for name in names if name in state}) > 1:
            yield Finding("untied-weights", names[-1], f"not tied to {names[0]}", fix_for("untied-weights"))


def _tied_embeddings(model: Any, state: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the names of the embeddings that the config ties, for a model that `load_model` did not load."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    if not (getattr(text, "tie_word_embeddings", False) and getattr(config, "tie_word_embeddings", False)):
        return
    names = {id(tensor): name for name, tensor in state.items()}
    try:
        modules = (model.get_input_embeddings(), model.get_output_embeddings())
    except NotImplementedError:  # a model without a vocabulary
        return
    found = [names.get(id(getattr(module, "weight", None))) for module in modules]
    if all(found):
        yield tuple(str(name) for name in found)


def _not_loaded(model: Any) -> Iterator[Finding]:
    origin = ORIGINS.get(model)
    if origin is None:
        return
    names = compare.untouched(model, origin.checkpoint, origin.plan)
    if names:
        what = f"expected the values of {origin.checkpoint.path}, found none of them ({shortened(names)})"
        yield Finding("not-loaded", names[0], what, fix_for("not-loaded"))
