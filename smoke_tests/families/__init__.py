"""Model families: all that the smoke tests know of a model by name, as data, one module for each.

Imports nothing but the standard library, as do the families: an unknown one is refused before torch is imported.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

# A token's number in the vocabulary.
Token = Callable[[str], int]


@dataclass(frozen=True)
class Family:
    """What differs from one family to the next. Tensors have the names that they have in published checkpoints."""

    name: str  # model_type in config.json
    modules: tuple[str, ...]  # of transformers, imported once before ranks are forked
    # Prefix in published checkpoints -> prefix in transformers 4.52 and later. The order counts: the first that fits.
    layouts: tuple[tuple[str, str], ...]
    vision_tower: str  # prefix of its tensors
    language_probe: str  # how a weight is called in every layer of the language model, and nowhere else in it
    patch_embedding: str
    patch_shape: tuple[int, ...]  # as in the family's real checkpoints
    missing_key: str  # a bias that the controls take away
    flipped_tensor: str  # a matrix in which they turn a bit over
    vocabulary_size: int  # of the made checkpoint, special tokens included
    special_tokens: tuple[str, ...]
    turn_end: str
    image_markup: str
    # The made checkpoint's small files, name -> content, for a vision tower of so many channels.
    files: Callable[[Token, int], dict[str, dict[str, Any]]]

    def published(self, name: str) -> str:
        """What a tensor of a model or checkpoint in any layout is called in published checkpoints."""
        return self._renamed(name, [(later, published) for published, later in self.layouts])

    def later(self, name: str) -> str:
        """What a tensor of a published checkpoint is called in transformers 4.52 and later."""
        return self._renamed(name, self.layouts)

    @staticmethod
    def _renamed(name: str, prefixes: Collection[tuple[str, str]]) -> str:
        for old, new in prefixes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def is_vision(self, name: str) -> bool:
        """Whether a tensor, in whatever layout, is the vision tower's."""
        return self.published(name).startswith(self.vision_tower)

    def problems(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Where this description does not fit a model of the family: published name -> shape of all its tensors."""
        where = f"{__name__.replace('.', '/')}/{self.name}.py"
        problems = [
            f"{where}: no tensor is called {getattr(self, field)!r}; mend {field}"
            for field in ("patch_embedding", "missing_key", "flipped_tensor")
            if getattr(self, field) not in shapes
        ]
        if not self.is_vision(self.patch_embedding):
            problems.append(f"{where}: {self.patch_embedding!r} is outside {self.vision_tower!r}; mend vision_tower")
        if shapes.get(self.patch_embedding, self.patch_shape) != self.patch_shape:
            found = list(shapes[self.patch_embedding])
            problems.append(f"{where}: {self.patch_embedding} is {found}, not {list(self.patch_shape)}; mend files")
        if not any(name.endswith(self.language_probe) and not self.is_vision(name) for name in shapes):
            problems.append(f"{where}: no tensor of the language model ends with {self.language_probe!r}; mend language_probe")
        return problems


def names() -> list[str]:
    """The families that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Family:
    """The family `name`, one of `names()`."""
    family = importlib.import_module(f"{__name__}.{name}").FAMILY
    assert isinstance(family, Family)
    return family
