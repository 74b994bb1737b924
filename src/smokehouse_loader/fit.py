"""Check that a checkpoint fits a model class, before memory is allocated for weights."""

import contextlib
import copy
import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smokehouse_loader import adapter, config_files, denoisers, keys, zero
from smokehouse_loader.checkpoint import DTYPES, Checkpoint, inspect_checkpoint
from smokehouse_loader.errors import Finding, LoadError, clipped, first_line, shortened
from smokehouse_loader.failures import fix_for
from smokehouse_loader.model_class import concrete_class, contradicting_architecture, read_config

_OLD_LAYOUT, _NEW_LAYOUT = "transformers before 4.52", "transformers 4.52 and later"
_VIT_LAYER = r"^((?:\w+\.)*?)layers\.(\d+)\."
_VIT_PIECES = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
    "": "",
}


@dataclass(frozen=True)
class _Layout:
    """Keys that another transformers uses: of `rules` the first that matches renames one to the installed version's."""

    of: str
    rules: tuple[tuple[str, str], ...]
    part: str  # of a key before or after, which shows that this layout is meant
    fix: str = ""  # that of the failure by default


_LAYOUTS = (
    # 4.52 moved the parts of vision-language models below `model.`, and the language model from there to
    # `model.language_model.`.
    _Layout(_NEW_LAYOUT, ((r"^model\.language_model\.", "model."), (r"^model\.", "")), "language_model."),
    _Layout(_OLD_LAYOUT, ((r"^model\.", "model.language_model."), (r"^", "model.")), "language_model."),
    # 5.9 renamed the layers of ViT, which TrOCR's encoder is: see "ViTModel" in its conversion_mapping.py.
    _Layout(
        "transformers 5.9 and later",
        tuple((_VIT_LAYER + re.escape(later), rf"\1encoder.layer.\2.{earlier}") for later, earlier in _VIT_PIECES.items()),
        "encoder.layer.",
        "use transformers 5.9 or later, which loads both layouts",
    ),
)
# Class -> patterns of names of tensors that no output of it depends on. Published checkpoints lack them, as those of TrOCR do:
# models/trocr/convert_trocr_unilm_to_pytorch.py of transformers makes them of an encoder without a pooler.
_UNREAD = {"VisionEncoderDecoderModel": (r"^encoder\.pooler\.",)}


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape differs between the file and the model."""

    name: str  # in the model
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """The comparison of a checkpoint with a model class: the names of tensors that differ, and `problems` in words.

    `missing` and `mismatched` use the model's names, `unexpected` the file's.
    """

    checkpoint: Checkpoint
    class_name: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    problems: tuple[Finding, ...] = ()
    fits_class: str | None = None  # another class that it fits
    layout: str | None = None  # the versions of transformers that use its key layout, if the installed one does not
    tied: tuple[tuple[str, ...], ...] = ()  # groups of names that the model ties to one tensor
    plan: keys.Plan = field(default_factory=keys.Plan, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def check_checkpoint(
    path: str | Path | Checkpoint,
    model_class: Any = None,
    *,
    config: Any = None,
    key_mapping: Mapping[str, str] | None = None,
    variant: str | None = None,
) -> Fit:
    """Return whether from_pretrained would load the checkpoint in `path` into `model_class` completely.

    `model_class` is a class, the name of one in transformers, or None for what `resolve_model_class` finds; `config` defaults
    to the checkpoint's own; `key_mapping` and `variant` are from_pretrained's arguments. Builds the model on the meta device
    and reads headers only: allocates no weights, needs no GPU. Raises LoadError if config.json or the class cannot be used.
    """
    checkpoint = path if isinstance(path, Checkpoint) else inspect_checkpoint(path, variant=variant)
    try:
        refuse_unreadable(checkpoint)
    except LoadError as refused:
        name = model_class if isinstance(model_class, str) else getattr(model_class, "__name__", "")
        return Fit(checkpoint, name, problems=refused.findings)
    config = read_config(checkpoint.path) if config is None else config
    found = concrete_class(model_class, config)
    if problem := _foreign_tensors(checkpoint, config):
        return Fit(checkpoint, found.__name__, problems=(problem,))
    fit = _compare(checkpoint, found, config, key_mapping)
    if fit.ok:
        contradiction = contradicting_architecture(config, found) if model_class is None else None
        problems = (dataclasses.replace(contradiction, where=f"{checkpoint.path}/config.json"),) if contradiction else ()
        return dataclasses.replace(fit, problems=problems)
    return _with_alternatives(fit, found, config)


# What training code puts before every key when it saves a model that something wraps -> what to do.
_WRAPPERS = {
    "_orig_mod.": "save model._orig_mod, not what torch.compile returned",
    "module.": "save model.module, or trainer.accelerator.unwrap_model(model)",
    "_fsdp_wrapped_module.": "save with the state_dict of FSDP, or trainer.save_model",
    "base_model.model.": "call merge_and_unload() of the PeftModel and save what it returns",
    "pretrained_model.": "save model.pretrained_model: TRL's value head wraps it",
}


def _foreign_tensors(checkpoint: Checkpoint, config: Any) -> Finding | None:
    """Return what shows that the tensors are not a plain model's: a quantiser, an adapter or a wrapper; else None."""
    names, where = checkpoint.tensors, str(checkpoint.path)
    fix = fix_for("quantised")
    if found := config_files.quantisation(_as_mapping(config)):
        return Finding("quantised", where, f"config.json has a quantization_config ({found})", fix)
    if found := config_files.quantised_tensors(names):
        what = f"its tensors are quantised ({found}), and config.json has no quantization_config"
        fix = "copy config.json from the quantised checkpoint, or load the checkpoint that it was quantised from"
        return Finding("quantised", where, what, fix)
    if adapter.embedded(names):
        fix = "call merge_and_unload() before save_pretrained, or save the adapter alone with the PeftModel's save_pretrained"
        return Finding("wrapped-keys", where, "its tensors are those of a model with an adapter inside", fix)
    for prefix, fix in _WRAPPERS.items():
        if names and all(name.startswith(prefix) for name in names):
            fix = f"{fix}; in this file, remove {prefix!r} from the keys"
            return Finding("wrapped-keys", where, f"all its keys begin with {prefix!r}, which belongs to no model", fix)
    return None


def _as_mapping(config: Any) -> Mapping[str, Any]:
    """Return what a config says of quantisation, as in config.json."""
    found = getattr(config, "quantization_config", None)
    if found is not None and not isinstance(found, Mapping):
        found = found.to_dict() if hasattr(found, "to_dict") else {"quant_method": str(found)}
    return {"quantization_config": found}


def refuse_unreadable(checkpoint: Checkpoint) -> None:
    """Raise LoadError if from_pretrained cannot read a checkpoint, or should not."""
    if checkpoint.problems:
        raise LoadError(checkpoint.problems)
    where = str(checkpoint.path)
    if checkpoint.layout == "deepspeed":
        what, fix = "expected a checkpoint of transformers, found a DeepSpeed engine's", fix_for("engine-checkpoint")
        if (checkpoint.path / "trainer_state.json").is_file():
            what = "expected a checkpoint of transformers, found a Trainer's with ZeRO partitions that are not consolidated"
            fix = (
                "run `python zero_to_fp32.py . .` in it, or resume from it with resume_from_checkpoint; "
                "stage3_gather_16bit_weights_on_model_save makes later ones whole"
            )
        raise LoadError([Finding("engine-checkpoint", where, what, fix)])
    if checkpoint.layout == "adapter":
        what, base = adapter.read(checkpoint.path)
        if wrong := [*adapter.problems(checkpoint, base)]:
            raise LoadError(wrong)
        fix = f"load {clipped(str(base))} with load_model, then peft.PeftModel.from_pretrained(model, {where!r})"
        raise LoadError([Finding("adapter-folder", where, f"expected a whole model, found {what}", fix)])
    if (checkpoint.path / adapter.CONFIG).is_file() and importlib.util.find_spec("peft"):
        what, base = adapter.read(checkpoint.path)
        what = (
            f"has a whole model beside {what}: from_pretrained, with peft installed, loads {clipped(str(base))} and the adapter"
        )
        fix = f"move {adapter.CONFIG} and the adapter's weights to a folder of their own"
        raise LoadError([Finding("adapter-folder", where, what, fix)])
    if checkpoint.layout not in ("safetensors", "bin"):
        what = f"expected a checkpoint of transformers, found the {checkpoint.layout} layout"
        raise LoadError([Finding("not-a-checkpoint", where, what, "convert it to the layout of transformers")])


def build_on_meta(model_class: Any, config: Any) -> Any:
    """Return a model without weights: every parameter is on the meta device, and tied ones are tied."""
    if isinstance(config, denoisers.Config):
        with zero.hidden(), torch.device("meta"):
            return model_class.from_config(dict(config.content))
    config = copy.deepcopy(config)
    with zero.hidden(), torch.device("meta"), _no_initialisation():
        # An attention kernel that is not installed is no reason to refuse a checkpoint: it changes no shape.
        with contextlib.suppress(AttributeError, ValueError):
            config._attn_implementation = "eager"
        model = model_class(config)
        model.tie_weights()
    return model


def _no_initialisation() -> contextlib.AbstractContextManager[None]:
    """Skip the initialisation of weights, which have no values on the meta device."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    context: contextlib.AbstractContextManager[None] = no_init_weights()
    return context


def _compare(checkpoint: Checkpoint, model_class: Any, config: Any, key_mapping: Mapping[str, str] | None) -> Fit:
    """Return how `checkpoint` fits the class, without suggestions for a better match."""
    try:
        model = build_on_meta(model_class, config)
    except Exception as wrong:  # noqa: BLE001 - an invalid or foreign config can break a model's constructor in any way
        what = f"{model_class.__name__} cannot be built from it: {first_line(wrong)}"
        problem = Finding("wrong-shape", f"{checkpoint.path}/config.json", what, fix_for("wrong-shape"))
        return Fit(checkpoint, model_class.__name__, problems=(problem,))
    plan = keys.plan(model, checkpoint.tensors, key_mapping)
    state = model.state_dict(keep_vars=True)
    converted, broken = _converted_shapes(checkpoint, plan)
    shapes = {name: checkpoint.tensors[key].shape for name, key in plan.renamed.items()} | converted
    tied = _ties(state)
    missing = [name for name in state if name not in shapes and not any(other in shapes for other in tied[id(state[name])])]
    mismatched = [
        Mismatch(name, shape, tuple(state[name].shape))
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    fit = Fit(
        checkpoint,
        model_class.__name__,
        tuple(required(model, missing)),
        tuple(_unexpected(model, plan.unmatched)),
        tuple(mismatched),
        tied=tuple(tuple(names) for names in tied.values() if len(names) > 1),
        plan=plan,
    )
    return dataclasses.replace(fit, problems=tuple(_problems(fit, state, broken)))


def _converted_shapes(checkpoint: Checkpoint, plan: keys.Plan) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the shapes that the conversions of `plan` produce, by the model's names, and the errors of those that fail."""
    shapes: dict[str, tuple[int, ...]] = {}
    broken = []
    for conversion in plan.conversions:
        try:
            tensors = conversion.apply({key: _on_meta(checkpoint, key) for key in conversion.sources})
        except Exception as wrong:  # noqa: BLE001 - an invalid checkpoint can break transformers' arithmetic in any way
            broken.append(f"{conversion.sources[0]} and {len(conversion.sources) - 1} more: {type(wrong).__name__}: {wrong}")
            continue
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes, broken


def _ties(state: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    """Return id -> names of each tensor of a state: tied tensors have several names."""
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
    """Return those of the file's unmatched `names` whose loss matters to transformers."""
    buffers = {name for name, _ in model.named_buffers()}
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return _without([name for name in names if name not in buffers], patterns)


def required(model: Any, missing: Sequence[str]) -> list[str]:
    """Return those of a model's `missing` names that a checkpoint has to have."""
    unread = [pattern for cls in type(model).__mro__ for pattern in _UNREAD.get(cls.__name__, ())]
    return _without(missing, [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()), *unread])


def _without(names: Sequence[str], patterns: Sequence[str] | set[str] | None) -> list[str]:
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())]


def _problems(fit: Fit, state: Mapping[str, torch.Tensor], broken: Sequence[str]) -> Iterator[Finding]:
    """Yield the problems of a comparison; `state` is the model's, `broken` has the errors of conversions that failed."""

    def finding(failure: str, what: str, where: str = str(fit.checkpoint.path)) -> Finding:
        return Finding(failure, where, what, fix_for(failure))

    model = fit.class_name
    if fit.mismatched:
        first = fit.mismatched[0]
        others = f", and {len(fit.mismatched) - 1} more" if len(fit.mismatched) > 1 else ""
        what = f"{model} expected the shape {list(first.in_model)}, found {list(first.in_file)}{others}"
        vocabulary = not (fit.missing or fit.unexpected) and all(map(_is_of_vocabulary, fit.mismatched))
        yield finding("embeddings-of-another-vocabulary" if vocabulary else "wrong-shape", what, first.name)
    for text in broken:
        yield finding("wrong-shape", f"cannot be converted for {model}: {text}")
    for name, key in fit.plan.renamed.items():
        dtype = fit.checkpoint.tensors[key].dtype
        if state[name].is_floating_point() != _is_floating_point(dtype):
            yield finding(
                "wrong-type", f"{model} expected {str(state[name].dtype).removeprefix('torch.')}, found {dtype}", name
            )
            break
    for one, other in fit.plan.doubled:
        yield finding("inconsistent-index", f"{one} and {other} would both be loaded into one parameter of {model}")
    if fit.missing:
        yield finding("missing-key", f"{len(fit.missing)} tensors of {model} not found ({shortened(fit.missing)})")
    if fit.unexpected:
        count = len(fit.unexpected)
        yield finding("dropped-weights", f"{count} tensors would be dropped by {model} ({shortened(fit.unexpected)})")


def _is_of_vocabulary(mismatch: Mismatch) -> bool:
    """Return whether a tensor has a row for each token, and only the number of them differs."""
    of_tokens = re.search(r"(?:^|\.)(?:embed_tokens|word_embeddings|wte|lm_head)\.weight$", mismatch.name)
    return bool(of_tokens) and mismatch.in_file[1:] == mismatch.in_model[1:]


_CLASS_OF_WEIGHTS = (
    "use the config.json and the class that the weights were saved with: these keys are of another model, or of one that other "
    "code wraps"
)


def _lacks_output_embedding(fit: Fit, config: Any) -> bool:
    """Return whether a checkpoint of the class that its config lists has everything but the output embedding."""
    if len(fit.problems) > 1 or fit.class_name not in (getattr(config, "architectures", None) or ()):
        return False
    return bool(fit.missing) and all(re.fullmatch(r"(?:\w+\.)*lm_head\.(?:weight|bias)", name) for name in fit.missing)


def _with_alternatives(fit: Fit, model_class: Any, config: Any) -> Fit:
    """Return `fit` with what would be a better match: another model type, another layout of keys, or another class."""
    import transformers

    if contradiction := contradicting_architecture(config, model_class):
        fix = "copy the config.json that belongs to the weights: they fit neither what it is nor what it lists"
        type_of = getattr(getattr(transformers, config.architectures[0], None), "config_class", None)
        if type_of is not None:
            fix = (
                f'set model_type to "{type_of.model_type}", which architectures expect: the weights do not fit {fit.class_name}'
            )
        problem = dataclasses.replace(contradiction, where=f"{fit.checkpoint.path}/config.json", cure=fix)
        return dataclasses.replace(fit, problems=(problem, *(dataclasses.replace(one, cure=fix) for one in fit.problems)))

    if _lacks_output_embedding(fit, config):
        fix = (
            "if the model ties its embeddings, as Qwen2.5-VL-3B does, set tie_word_embeddings to true in config.json (in "
            "text_config, too); otherwise get the complete checkpoint"
        )
        problems = tuple(dataclasses.replace(one, failure="output-embedding-missing", cure=fix) for one in fit.problems)
        return dataclasses.replace(fit, problems=problems)
    if fit.missing or fit.unexpected:
        if found := _other_layout(fit, set(build_on_meta(model_class, config).state_dict())):
            return found
        for candidate in _candidates(config):
            if candidate is not model_class and _compare(fit.checkpoint, candidate, config, None).ok:
                fix = f"load it with {candidate.__name__}, which it fits"
                problems = tuple(dataclasses.replace(problem, cure=fix) for problem in fit.problems)
                return dataclasses.replace(fit, problems=problems, fits_class=candidate.__name__)
    # One cause, one cure: tensors that are missing, unexpected or of another shape are so for the same reason.
    kinds = {"wrong-shape", "missing-key", "dropped-weights"}
    cure = next((problem.cure for problem in fit.problems if problem.failure in kinds), "")
    if fit.missing and fit.unexpected and not fit.mismatched:
        cure = _CLASS_OF_WEIGHTS
    problems = tuple(dataclasses.replace(one, cure=cure) if one.failure in kinds else one for one in fit.problems)
    fit = dataclasses.replace(fit, problems=problems)
    saved_by = getattr(config, "transformers_version", None)
    if saved_by and saved_by != transformers.__version__:
        note = f"; saved by transformers {saved_by}, installed is {transformers.__version__}"
        problems = tuple(dataclasses.replace(problem, what=problem.what + note) for problem in fit.problems)
        return dataclasses.replace(fit, problems=problems)
    return fit


def _other_layout(fit: Fit, model_keys: set[str]) -> Fit | None:
    """Return `fit` with a finding if its unexpected keys fit the model in another layout, None otherwise."""
    import transformers

    for layout in _LAYOUTS:
        renamed = [_rename(name, layout.rules) for name in fit.unexpected]
        meant = any(layout.part in name for name in (*fit.unexpected, *renamed))
        if len(renamed) < 2 or not meant or not model_keys.issuperset(renamed):
            continue
        what = f"expected the key layout of transformers {transformers.__version__}, found that of {layout.of}"
        fix = layout.fix or fix_for("key-layout")
        if layout.of == _OLD_LAYOUT:
            # Some versions (4.52, and late 5.x) rename keys only for classes of their own, not for a user's subclass.
            mapping = _key_mapping(fit.checkpoint.tensors, model_keys)
            fix = f"load it with transformers' own class, or pass key_mapping={mapping} to rename its keys for {fit.class_name}"
        problem = Finding("key-layout", str(fit.checkpoint.path), what, fix)
        # The layout is why they are missing and unexpected: their own cures would contradict this one.
        others = [one for one in fit.problems if one.failure not in ("missing-key", "dropped-weights")]
        return dataclasses.replace(fit, problems=(problem, *others), layout=layout.of)
    return None


def _key_mapping(file_keys: Iterable[str], model_keys: set[str]) -> dict[str, str]:
    """Return the argument of from_pretrained that renames `file_keys` from the older layout to the newer."""
    moved = {name.split(".")[1] for name in model_keys if name.startswith("model.")}
    parts = sorted(moved & {name.partition(".")[0] for name in file_keys} - {"model"})
    kept = "|".join(["language_model", *map(re.escape, parts)])
    return {f"^{re.escape(part)}": f"model.{part}" for part in parts} | {rf"^model(?!\.({kept}))": "model.language_model"}


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def _candidates(config: Any) -> Iterator[Any]:
    """Yield the classes that the config lists or that transformers has for it, each once."""
    import transformers

    seen = set()
    automatic = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    for name in (*(getattr(config, "architectures", None) or ()), *automatic):
        with contextlib.suppress(LoadError):
            if isinstance(name, str) and hasattr(transformers, name):
                found = concrete_class(name, config)
                if found not in seen and isinstance(config, getattr(found, "config_class", None) or ()):
                    seen.add(found)
                    yield found
