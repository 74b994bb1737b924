"""Map the keys of a file to those of a model, with the renames that the installed transformers applies while it loads.

Three generations of transformers keep the renames in three places. Each is read the way its own from_pretrained reads it, so
that new renames are picked up. Measured on 4.49.0, 4.51.3, 4.52.4, 4.57.6, 5.0.0 and 5.23.0; the names used here were looked
up in the other releases from 4.50.3 to 5.22.0.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Conversion:
    """Tensors of the file that are split or merged: `apply` turns `sources`, by key, into the model's tensors, by name."""

    sources: tuple[str, ...]
    apply: Callable[[Tensors], Tensors]


@dataclass
class Plan:
    """The mapping of a file's keys to a model's: `renamed` is model key -> file key, `unmatched` the remaining file keys."""

    renamed: dict[str, str] = field(default_factory=dict)
    conversions: list[Conversion] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    doubled: list[tuple[str, str]] = field(default_factory=list)  # pairs of file keys for one model key

    def take(self, model_key: str, file_key: str) -> None:
        """Record that `file_key` is loaded as `model_key`."""
        if model_key in self.renamed:
            self.doubled.append((self.renamed[model_key], file_key))
        self.renamed[model_key] = file_key


def plan(model: Any, file_keys: Iterable[str], key_mapping: Mapping[str, str] | None = None) -> Plan:
    """Return how from_pretrained would load `file_keys` into `model`; `key_mapping` is its argument of that name."""
    keys = list(file_keys)
    names = set(model.state_dict())
    if not hasattr(model, "base_model_prefix"):  # not of transformers: diffusers renames nothing in these models
        return _collect(names, ((key, key) for key in keys))
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        if hasattr(model, "_get_key_renaming_mapping"):
            return _by_mapping(model, names, keys, key_mapping)
        return _by_prefix(model, names, keys)
    transforms = get_model_conversion_mapping(model, dict(key_mapping) if key_mapping else None, None)
    return _by_transforms(model, names, keys, transforms)


def _collect(names: set[str], pairs: Iterable[tuple[str, str | None]]) -> Plan:
    found = Plan()
    for file_key, model_key in pairs:
        if model_key in names:
            found.take(model_key, file_key)
        else:
            found.unmatched.append(file_key)
    return found


def _by_prefix(model: Any, names: set[str], keys: Sequence[str]) -> Plan:
    """Map keys as transformers 4.49 does: update old names of norms, add or remove the base model's prefix."""
    prefix = model.base_model_prefix
    updated = {key: model._fix_state_dict_key_on_load(key)[0] for key in keys}
    in_file = bool(prefix) and any(key.startswith(prefix) for key in updated.values())
    in_model = bool(prefix) and any(name.startswith(prefix) for name in names)

    def rename(key: str) -> str | None:
        if in_model and not in_file:
            return f"{prefix}.{key}" if f"{prefix}.{key}" in names else key
        if in_file and not in_model:
            return key[len(prefix) + 1 :] if key.startswith(f"{prefix}.") else None
        return key

    return _collect(names, ((key, rename(renamed)) for key, renamed in updated.items()))


def _by_mapping(model: Any, names: set[str], keys: Sequence[str], key_mapping: Mapping[str, str] | None) -> Plan:
    """Map keys as transformers 4.50 to 4.57 does: by regular expressions that a class has for its old checkpoints."""
    prefix = model.base_model_prefix
    if key_mapping is None:
        import transformers
        from transformers import modeling_utils

        families = getattr(modeling_utils, "VLMS", ())
        # 4.52 looks at the class alone, later versions at its bases too.
        bases = type(model).__mro__[:1] if transformers.__version__.startswith("4.52.") else type(model).__mro__[:-1]
        classes = [base.__name__.lower() for base in bases]
        if any(family in name for family in families for name in classes):
            key_mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    in_file = bool(prefix) and any(key.startswith(prefix) for key in keys)
    in_model = bool(prefix) and hasattr(model, prefix)
    arguments = (keys, key_mapping, in_file and not in_model, in_model and not in_file)
    mapping = model._get_key_renaming_mapping(*arguments)
    return _collect(names, ((key, mapping.get(key)) for key in keys))


def _by_transforms(model: Any, names: set[str], keys: Sequence[str], transforms: Sequence[Any]) -> Plan:
    """Map keys as transformers 5 does: by an ordered list of renames, and conversions that merge or split tensors."""
    from transformers import core_model_loading as core

    renamings = [entry for entry in transforms if isinstance(entry, core.WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, core.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = dict.fromkeys(names, True)
    prefix = model.base_model_prefix
    found = Plan()
    groups: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(keys, key=core.dot_natural_key):
        name, pattern = core.rename_source_key(key, renamings, converters, prefix, state)
        if name not in names and key in names:
            name, pattern = core.rename_source_key(key, [], [], prefix, state)
        if name not in names:
            found.unmatched.append(key)
        elif pattern is None:
            found.take(name, key)
        else:
            groups.setdefault(name, (by_pattern[pattern], []))[1].append((key, pattern))
    found.conversions += [_conversion(model, name, converter, parts) for name, (converter, parts) in groups.items()]
    return found


def _conversion(model: Any, name: str, converter: Any, parts: Sequence[tuple[str, str]]) -> Conversion:
    def apply(tensors: Tensors) -> Tensors:
        fresh = copy.deepcopy(converter)
        for key, pattern in parts:
            fresh.add_tensor(name, key, pattern, tensors[key])
        converted = fresh.convert(name, model=model, config=model.config)
        if isinstance(converted, tuple):  # 5.0 alone returns the errors too
            converted = converted[0]
        return {target: value[0] if isinstance(value, list) else value for target, value in converted.items()}

    return Conversion(tuple(key for key, _ in parts), apply)
