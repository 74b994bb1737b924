"""Model families: all that the smoke tests know about a model by name, as data, one module each.

    family = families.get("NAME")  # one of families.names()

Imports the standard library only, as every family does: an unknown family is refused before torch is imported.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

DEFAULT = "qwen2_5_vl"  # the family of runs without a lock, unless another is requested

# A token's number in the vocabulary.
Token = Callable[[str], int]


@dataclass(frozen=True)
class Family:
    """What differs between families. Tensors have their names in published checkpoints."""

    name: str  # model_type in config.json
    model_class: str  # of transformers, which loads a checkpoint whole
    modules: tuple[str, ...]  # of transformers, to import once before ranks are forked
    # Prefix in published checkpoints -> prefix in transformers 4.52 and later. The first that matches counts.
    layouts: tuple[tuple[str, str], ...]
    vision_tower: str  # prefix of its tensors
    language_probe: str  # end of the name of one weight in each layer of the language model, and of no other in it
    vision_attention: str  # end of the name of the attention in each of its layers
    language_attention: str  # the same in the language model
    patch_embedding: str
    patch_shape: tuple[int, ...]  # as in the family's real checkpoints
    missing_key: str  # a bias that the controls remove
    flipped_tensor: str  # a matrix in which they flip a bit
    processor_files: tuple[str, ...]  # of a checkpoint, which its processor is loaded from
    synthetic_parameters: int  # of the synthetic checkpoint, about
    vocabulary_size: int  # of the synthetic checkpoint, special tokens included
    special_tokens: tuple[str, ...]
    turn_end: str
    image_markup: str
    # The synthetic checkpoint's small files, name -> content, for a vision tower with that many channels.
    files: Callable[[Token, int], dict[str, dict[str, Any]]]
    # The same for usual sizes: patches are merged, attention is in windows where the family has them, 4,096 positions.
    realistic_files: Callable[[Token, int], dict[str, dict[str, Any]]]
    realistic_width: int  # channels of its vision tower

    def published(self, name: str) -> str:
        """Return the name in published checkpoints of a tensor in any layout."""
        return self._renamed(name, [(later, published) for published, later in self.layouts])

    def later(self, name: str) -> str:
        """Return the name in transformers 4.52 and later of a tensor in a published checkpoint."""
        return self._renamed(name, self.layouts)

    @staticmethod
    def _renamed(name: str, prefixes: Collection[tuple[str, str]]) -> str:
        for old, new in prefixes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def is_vision(self, name: str) -> bool:
        """Whether a tensor, in any layout, belongs to the vision tower."""
        return self.published(name).startswith(self.vision_tower)

    def problems(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Return where this description does not fit a model, given published name -> shape of all its tensors."""
        where = f"{__name__.replace('.', '/')}/{self.name}.py"
        problems = [
            f"{where}: tensor {getattr(self, field)!r} not found in the model; fix {field}"
            for field in ("patch_embedding", "missing_key", "flipped_tensor")
            if getattr(self, field) not in shapes
        ]
        if not self.is_vision(self.patch_embedding):
            problems.append(f"{where}: {self.patch_embedding!r} is outside {self.vision_tower!r}; fix vision_tower")
        if shapes.get(self.patch_embedding, self.patch_shape) != self.patch_shape:
            found = list(shapes[self.patch_embedding])
            problems.append(
                f"{where}: {self.patch_embedding}: expected shape {list(self.patch_shape)}, found {found}; fix files"
            )
        if not any(name.endswith(self.language_probe) and not self.is_vision(name) for name in shapes):
            problems.append(f"{where}: no tensor of the language model ends with {self.language_probe!r}; fix language_probe")
        return problems


def names() -> list[str]:
    """Return the names of all families."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Family:
    """Return the family `name`, one of `names()`."""
    family: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return family
