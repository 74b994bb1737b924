"""The shape guard: whether a checkpoint fits a class, told before any memory is taken for weights."""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smokehouse_loader import keys, zero
from smokehouse_loader.checkpoint import DTYPES, Checkpoint, inspect_checkpoint
from smokehouse_loader.errors import Finding, LoadError, first_line, shortened
from smokehouse_loader.failures import cure_of
from smokehouse_loader.model_class import concrete_class, read_config

# transformers 4.52 moved the keys of Qwen2.5-VL and others; each rule leads from one layout to the other.
_OLD = "transformers before 4.52"
_LAYOUTS = (
    ("transformers 4.52 and later", ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))),
    (
        _OLD,
        ((r"^visual\.", "model.visual."), (r"^model\.(?!language_model\.|visual\.)", "model.language_model.")),
    ),
)
# The argument of from_pretrained that leads from the older layout to the newer.
KEY_MAPPING = {"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape differs between the file and the model."""

    name: str  # in the model
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """How a checkpoint fits a class. `problems` has all that is wrong, in words; the lists name tensors.

    `missing` and `mismatched` go by the model's names, `unexpected` by the file's.
    """

    checkpoint: Checkpoint
    class_name: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    problems: tuple[Finding, ...] = ()
    fits_class: str | None = None  # another class that it fits
    layout: str | None = None  # the versions of transformers whose layout it has, where that is not the installed one's
    tied: tuple[tuple[str, ...], ...] = ()  # names of one and the same tensor of the model
    plan: keys.Plan = field(default_factory=keys.Plan, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_checkpoint(
    path: str | Path | Checkpoint,
    model_class: Any = None,
    *,
    config: Any = None,
    key_mapping: Mapping[str, str] | None = None,
    variant: str | None = None,
) -> Fit:
    """Whether from_pretrained would load the checkpoint in `path` into `model_class` whole.

    `model_class` is a class, the name of one in transformers, or None for the one that `resolve_model_class` finds; `config` is
    read from the checkpoint where it is not given. Builds the model on the meta device and reads headers: no memory is taken
    for weights and no GPU is needed. Raises LoadError where config.json or the class cannot be used at all.
    """
    checkpoint = path if isinstance(path, Checkpoint) else inspect_checkpoint(path, variant=variant)
    try:
        refuse_unreadable(checkpoint)
    except LoadError as refused:
        return Fit(checkpoint, _name(model_class), problems=refused.findings)
    config = read_config(checkpoint.path) if config is None else config
    found = concrete_class(model_class, config)
    if getattr(config, "quantization_config", None) is not None:
        what = "config.json has a quantization_config"
        return Fit(
            checkpoint, found.__name__, problems=(Finding("quantised", str(checkpoint.path), what, cure_of("quantised")),)
        )
    fit = _compare(checkpoint, found, config, key_mapping)
    return fit if fit.ok else _with_alternatives(fit, found, config)


def refuse_unreadable(checkpoint: Checkpoint) -> None:
    """Raise LoadError where from_pretrained cannot read a checkpoint, or should not."""
    if checkpoint.problems:
        raise LoadError(checkpoint.problems)
    if checkpoint.layout not in ("safetensors", "bin"):
        raise LoadError([_foreign(checkpoint)])


def _name(model_class: Any) -> str:
    return model_class if isinstance(model_class, str) else getattr(model_class, "__name__", "")


def _foreign(checkpoint: Checkpoint) -> Finding:
    if checkpoint.layout == "deepspeed":
        return Finding(
            "engine-checkpoint", str(checkpoint.path), "is a DeepSpeed engine's checkpoint", cure_of("engine-checkpoint")
        )
    what = f"has the {checkpoint.layout} layout, which from_pretrained does not read"
    return Finding("not-a-checkpoint", str(checkpoint.path), what, "convert it to the layout of transformers")


def build_on_meta(model_class: Any, config: Any) -> Any:
    """A model without weights: every parameter is on the meta device, and tied ones are tied."""
    config = copy.deepcopy(config)
    with zero.hidden(), torch.device("meta"), _no_initialisation(), contextlib.ExitStack() as stack:
        # A kernel that is not installed is no reason to refuse a checkpoint: it changes no shape.
        with contextlib.suppress(AttributeError, ValueError):
            config._attn_implementation = "eager"
        model = stack.enter_context(contextlib.nullcontext(model_class(config)))
        model.tie_weights()
    return model


@contextlib.contextmanager
def _no_initialisation() -> Iterator[None]:
    """No time is spent on values: on the meta device there are none."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    with no_init_weights():
        yield


def _compare(checkpoint: Checkpoint, model_class: Any, config: Any, key_mapping: Mapping[str, str] | None) -> Fit:
    try:
        model = build_on_meta(model_class, config)
    except Exception as wrong:  # noqa: BLE001 - a hostile or foreign config can break a model's constructor in any way
        what = f"{model_class.__name__} cannot be built from it: {first_line(wrong)}"
        problem = Finding("wrong-shape", f"{checkpoint.path}/config.json", what, cure_of("wrong-shape"))
        return Fit(checkpoint, model_class.__name__, problems=(problem,))
    plan = keys.plan(model, checkpoint.tensors, key_mapping)
    state = model.state_dict(keep_vars=True)
    shapes = {name: checkpoint.tensors[key].shape for name, key in plan.renamed.items()}
    dtypes = {name: checkpoint.tensors[key].dtype for name, key in plan.renamed.items()}
    broken = []
    for conversion in plan.conversions:
        try:
            made = conversion.apply({key: _on_meta(checkpoint, key) for key in conversion.sources})
        except Exception as wrong:  # noqa: BLE001 - whatever shapes a damaged checkpoint has meet transformers' arithmetic here
            broken.append(f"{conversion.sources[0]} and {len(conversion.sources) - 1} more: {type(wrong).__name__}: {wrong}")
            continue
        shapes |= {name: tuple(tensor.shape) for name, tensor in made.items()}
    tied = _ties(state)
    missing = [name for name in state if name not in shapes and not any(other in shapes for other in tied[id(state[name])])]
    mismatched = [
        Mismatch(name, shape, tuple(state[name].shape))
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    numbers = [name for name, dtype in dtypes.items() if state[name].is_floating_point() != _is_floating_point(dtype)]
    missing = _without(missing, getattr(model, "_keys_to_ignore_on_load_missing", None))
    unexpected = _unexpected(model, plan.unmatched)
    problems = _problems(checkpoint, model_class.__name__, missing, unexpected, mismatched, numbers, broken, plan.doubled)
    return Fit(
        checkpoint,
        model_class.__name__,
        tuple(missing),
        tuple(unexpected),
        tuple(mismatched),
        tuple(problems),
        tied=tuple(tuple(names) for names in tied.values() if len(names) > 1),
        plan=plan,
    )


def _ties(state: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    """The names of each tensor of a state, by the tensor's identity: tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return names


def _on_meta(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint.tensors[name]
    return torch.empty(tensor.shape, dtype=getattr(torch, DTYPES[tensor.dtype]), device="meta")


def _is_floating_point(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


def _unexpected(model: Any, names: Sequence[str]) -> list[str]:
    """What of the file's `names` no tensor of the model takes, less what transformers knows to be no loss."""
    buffers = {name for name, _ in model.named_buffers()}
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return _without([name for name in names if name not in buffers], patterns)


def _without(names: Sequence[str], patterns: Sequence[str] | set[str] | None) -> list[str]:
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())]


def _problems(
    checkpoint: Checkpoint,
    class_name: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[Mismatch],
    numbers: Sequence[str],
    broken: Sequence[str],
    doubled: Sequence[tuple[str, str]],
) -> Iterator[Finding]:
    def finding(failure: str, what: str, where: str = str(checkpoint.path)) -> Finding:
        return Finding(failure, where, what, cure_of(failure))

    if mismatched:
        first = mismatched[0]
        rest = f", and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        what = f"is {list(first.in_file)} in the checkpoint and {list(first.in_model)} in {class_name}{rest}"
        yield finding("wrong-shape", what, first.name)
    for text in broken:
        yield finding("wrong-shape", f"cannot be converted to what {class_name} holds: {text}")
    if numbers:
        yield finding("wrong-type", f"is not floating-point where {class_name} is, or the reverse", numbers[0])
    for one, other in doubled:
        yield finding("inconsistent-index", f"both {one} and {other} would be loaded into one parameter of {class_name}")
    if missing:
        yield finding("missing-key", f"lacks {len(missing)} tensors of {class_name} ({shortened(missing)})")
    if unexpected:
        yield finding("dropped-weights", f"{class_name} has no place for {len(unexpected)} tensors ({shortened(unexpected)})")


def _with_alternatives(fit: Fit, model_class: Any, config: Any) -> Fit:
    """`fit`, with what would be a better match: another layout of keys, or another class."""
    import transformers

    problems = list(fit.problems)
    model_keys = set(build_on_meta(model_class, config).state_dict()) if fit.missing or fit.unexpected else set()
    for layout, rules in _LAYOUTS:
        if len(fit.unexpected) < 2 or not model_keys:
            break
        renamed = [_rename(name, rules) for name in fit.unexpected]
        if all(name in model_keys for name in renamed):
            what = f"its keys are in the layout of {layout}; installed is {transformers.__version__}"
            cure = cure_of("key-layout")
            if layout == _OLD:
                # Some versions (4.52, and late 5.x) rename for classes of their own alone: a user's subclass gets no rename.
                cure = f"load it with transformers' own class, or give {fit.class_name} the renames: key_mapping={KEY_MAPPING}"
            problems.insert(0, Finding("key-layout", str(fit.checkpoint.path), what, cure))
            return dataclasses.replace(fit, problems=tuple(problems), layout=layout)
    if fit.missing or fit.unexpected:
        for candidate in _candidates(config):
            if candidate is not model_class and _compare(fit.checkpoint, candidate, config, None).ok:
                cure = f"load it with {candidate.__name__}, which it fits"
                problems = [Finding(one.failure, one.where, one.what, cure) for one in problems]
                return dataclasses.replace(fit, problems=tuple(problems), fits_class=candidate.__name__)
    wrote = getattr(config, "transformers_version", None)
    if wrote and wrote != transformers.__version__:
        note = f"; its config.json was written by transformers {wrote}, installed is {transformers.__version__}"
        problems = [Finding(one.failure, one.where, one.what + note, one.cure) for one in problems]
    return dataclasses.replace(fit, problems=tuple(problems))


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def _candidates(config: Any) -> Iterator[Any]:
    """The classes that the config names or that transformers has for it, each once."""
    import transformers

    seen = set()
    for name in [
        *(getattr(config, "architectures", None) or ()),
        "AutoModelForImageTextToText",
        "AutoModelForCausalLM",
        "AutoModel",
    ]:
        with contextlib.suppress(LoadError):
            if isinstance(name, str) and hasattr(transformers, name):
                found = concrete_class(name, config)
                if found not in seen and isinstance(config, getattr(found, "config_class", None) or ()):
                    seen.add(found)
                    yield found
