"""Whether loading is over: what has to be true of a model before an engine takes its parameters."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smokehouse_loader import compare, zero
from smokehouse_loader.checkpoint import Checkpoint
from smokehouse_loader.consensus import Verdict
from smokehouse_loader.errors import Finding, shortened
from smokehouse_loader.failures import cure_of
from smokehouse_loader.keys import Plan


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from."""

    checkpoint: Checkpoint
    plan: Plan
    tied: tuple[tuple[str, ...], ...]  # names of one and the same tensor, as the class ties them


ORIGINS: "weakref.WeakKeyDictionary[Any, Origin]" = weakref.WeakKeyDictionary()


def assert_ready(model: Any) -> None:
    """Raise LoadError, the same on every rank, where `model` is not ready for deepspeed.initialize.

    Every rank has to call it. Each finding names the parameter and the order of calls that cures it: one on the meta device,
    one that is empty and not partitioned, one partitioned that should not be or the reverse, tied ones that are apart, and, in
    a model of `load_model`, one that holds nothing of what the checkpoint holds for it.
    """
    verdict = Verdict()
    verdict.agree([*problems(model), *_initialised(model)])


def problems(model: Any) -> list[Finding]:
    """What of a model's parameters is not as it should be, but for their values."""
    return [*setting(), *partitioning(model, asked=zero.is_asked_for()), *_ties(model)]


def setting() -> Iterator[Finding]:
    """What of this process, rather than of a model, ruins a load."""
    if zero.inside_init():
        what = "this runs inside a deepspeed.zero.Init that transformers did not enter"
        yield Finding("partitioned-before-load", "deepspeed.zero.Init", what, cure_of("partitioned-before-load"))
    if zero.config_was_dropped():
        what = "one was made and nothing refers to it any more"
        yield Finding("dropped-config", "HfDeepSpeedConfig", what, cure_of("dropped-config"))


def partitioning(model: Any, *, asked: bool) -> Iterator[Finding]:
    """How a model's parameters are not as they should be, where ZeRO-3 was `asked` for or was not."""
    meta, empty, whole, parted, short = [], [], [], [], []
    for name, parameter in model.named_parameters():
        if zero.is_partitioned(parameter):
            if not asked:
                parted.append(name)
            elif not hasattr(parameter, "ds_tensor"):
                empty.append(name)
            elif parameter.numel() == 0 and _held(parameter) != zero.share(parameter.ds_numel, zero.holders(parameter)):
                short.append(name)
        elif parameter.is_meta:
            meta.append(name)
        elif tuple(parameter.shape) == (0,):
            empty.append(name)
        elif asked:
            whole.append(name)
    for failure, names, what in (
        ("left-on-meta", meta, "is on the meta device"),
        ("deepcopied-model", empty, "is empty, and not partitioned: a copy of a partitioned model, or never loaded"),
        ("not-partitioned", whole, "is whole, and ZeRO-3 was asked for"),
        ("not-partitioned", parted, "is partitioned, and no live HfDeepSpeedConfig asks for ZeRO-3"),
        ("not-partitioned", short, "holds another part than ZeRO-3 gives to a rank"),
    ):
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(failure, names[0], f"{what}{others}", cure_of(failure))


def _held(parameter: Any) -> int:
    return int(parameter.ds_tensor.numel())


def _ties(model: Any) -> Iterator[Finding]:
    origin = ORIGINS.get(model)
    state = compare.state_of(model)
    for names in origin.tied if origin else _embeddings(model, state):
        # transformers 5 leaves two tensors apart that the checkpoint holds both.
        held = [name for name in names if origin and name in origin.plan.renamed]
        if len(held) < 2 and len({id(state[name]) for name in names if name in state}) > 1:
            yield Finding("untied-weights", names[-1], f"is not tied to {names[0]}", cure_of("untied-weights"))


def _embeddings(model: Any, state: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The names of the embeddings that a model's config ties, for a model of unknown origin."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    if not (getattr(text, "tie_word_embeddings", False) and getattr(config, "tie_word_embeddings", False)):
        return
    names = {id(tensor): name for name, tensor in state.items()}
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = [names.get(id(getattr(module, "weight", None))) for module in modules]
    if all(found):
        yield tuple(str(name) for name in found)


def _initialised(model: Any) -> Iterator[Finding]:
    origin = ORIGINS.get(model)
    if origin is None:
        return
    names = compare.untouched(model, origin.checkpoint, origin.plan)
    if names:
        what = f"holds nothing of what {origin.checkpoint.path} holds for it ({shortened(names)})"
        yield Finding("not-loaded", names[0], what, cure_of("not-loaded"))
