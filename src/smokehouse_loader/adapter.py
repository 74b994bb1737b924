"""Check an adapter: the small set of weights that PEFT saves, for a base model that is elsewhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smokehouse_loader.checkpoint import Checkpoint, inspect_checkpoint
from smokehouse_loader.config_files import read_object
from smokehouse_loader.errors import Finding, clipped, shortened
from smokehouse_loader.safetensors_header import BadFileError, Tensor

CONFIG = "adapter_config.json"
# PEFT wraps a model twice, and transformers 4.52 moved the parts of vision-language models: names are compared without either.
_WRAPPING = "base_model.model."
_LAYOUT = (("model.language_model.", "model."), ("language_model.model.", "model."), ("model.visual.", "visual."))


def describe(folder: Path) -> tuple[str, str | None]:
    """Return what the adapter in `folder` is, such as "LORA adapter of BASE, rank 8", and its base.

    Raises BadFileError if its configuration cannot be read.
    """
    config = read_object(folder / CONFIG)
    kind, rank = config.get("peft_type"), config.get("r")
    base = config.get("base_model_name_or_path")
    base = base if isinstance(base, str) and base.strip() else None
    what = f"an adapter of {clipped(base) if base else 'a base that its configuration does not name'}"
    details = [str(kind)[:20]] if isinstance(kind, str) else []
    details += [f"rank {rank}"] if type(rank) is int else []
    return f"{what} ({', '.join(details)})" if details else what, base


def problems(adapter: Checkpoint, base: str | None) -> Iterator[Finding]:
    """Yield why the intact `adapter` does not go with its `base`, as far as the files on this machine tell."""
    where = str(adapter.path / CONFIG)
    try:
        describe(adapter.path)
    except BadFileError as bad:
        yield Finding(bad.failure, where, str(bad), "copy it again from where the adapter was saved")
        return
    if base is None:
        fix = "set it to the model that the adapter was trained on"
        yield Finding("adapter-of-another-base", where, "base_model_name_or_path: expected a model, found none", fix)
        return
    place = Path(base)
    if not place.is_dir():
        # A name on a hub has one slash at most, and does not begin like a path.
        if place.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
            fix = "set it to the folder of the base on this machine, or to its name on the hub"
            yield Finding("adapter-of-another-base", where, f"base_model_name_or_path: folder {clipped(base)} not found", fix)
        return
    found = inspect_checkpoint(place)
    if found.problems:
        yield from found.problems
        return
    yield from _unlike_base(adapter, {_common(name): tensor for name, tensor in found.tensors.items()}, base)


def _common(name: str) -> str:
    """Return a tensor's name without what PEFT and newer versions of transformers put before it."""
    name = name.removeprefix(_WRAPPING)
    for newer, older in _LAYOUT:
        if name.startswith(newer):
            return older + name.removeprefix(newer)
    return name


def _unlike_base(adapter: Checkpoint, base: Mapping[str, Tensor], name: str) -> Iterator[Finding]:
    lost, other = [], []
    for key, tensor in adapter.tensors.items():
        module, part = _module(_common(key))
        weight = base.get(f"{module}.weight")
        if weight is None:
            if f"{module}.weight" not in _TIED or not any(tied in base for tied in _TIED):
                lost.append(key)
        elif not _fits(part, tensor.shape, weight.shape):
            other.append((key, tensor, weight))
    if vocabulary := [entry for entry in other if _module(_common(entry[0]))[0].endswith(("embed_tokens", "lm_head"))]:
        key, tensor, weight = vocabulary[0]
        tokens = tensor.shape[-1 if _module(_common(key))[1] == "lora_A" else 0] if tensor.shape else 0
        what = f"{clipped(key)} is for {tokens} tokens, its base {clipped(name)} has {weight.shape[0]}"
        fix = f"call model.resize_token_embeddings({tokens}) on the base before PeftModel.from_pretrained"
        yield Finding("adapter-of-another-base", str(adapter.path), what, fix)
    elif other:
        key, tensor, weight = other[0]
        what = f"{clipped(key)} has shape {list(tensor.shape)}, its base {clipped(name)} has {list(weight.shape)} there"
        fix = "set base_model_name_or_path to the model that it was trained on: this one has other sizes"
        yield Finding("adapter-of-another-base", str(adapter.path), what, fix)
    elif lost:
        what = f"adapts {len(lost)} of {len(adapter.tensors)} modules that {clipped(name)} does not have ({shortened(lost)})"
        fix = "set base_model_name_or_path to the model that it was trained on: this one is of another class"
        yield Finding("adapter-of-another-base", str(adapter.path), what, fix)


_TIED = ("lm_head.weight", "model.embed_tokens.weight")
_PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "vector",
    ".lora_magnitude_vector.weight": "vector",
}


def _module(name: str) -> tuple[str, str]:
    """Return the adapted module, and which part of its adapter the tensor `name` is; "whole" for one that replaces it."""
    for end, part in _PARTS.items():
        if name.endswith(end):
            return name.removesuffix(end).removesuffix(".base_layer"), part
    return name.removesuffix(".weight").removesuffix(".bias").removesuffix(".modules_to_save"), "whole"


def _fits(part: str, found: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Return whether a part of an adapter can belong to a weight of shape `base`, [out, in, …]."""
    if not found or len(base) < 2:
        return True
    if part == "lora_A":
        return found[1:] == base[1:]
    if part == "lora_B":
        return found[0] == base[0]
    if part == "embedding_A":
        return found[-1] == base[0]
    if part == "embedding_B":
        return found[0] == base[1]
    return part == "vector" or len(found) != len(base) or found == base


def read(folder: Path) -> tuple[str, str | None]:
    """Return `describe`'s answer, or what is wrong with the configuration instead of it."""
    try:
        return describe(folder)
    except BadFileError as bad:
        return f"an adapter whose {CONFIG} is invalid ({bad})", None


def embedded(names: Mapping[str, Any]) -> bool:
    """Return whether tensors of these `names` are a model's with the modules of an adapter inside."""
    return any(".lora_A." in name or ".base_layer." in name for name in names)
