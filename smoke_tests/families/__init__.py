"""Model families: all that the smoke tests know about a model by name, as data, one module each.

    family = families.get("NAME")  # one of families.names()

Imports the standard library only, as every family does: an unknown family is refused before torch is imported.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT = "qwen2_5_vl"  # the family of runs without a lock, unless another is requested
POSITIONS = 4096  # tokens that a synthetic checkpoint for usual sizes takes

# A token's number in the vocabulary.
Token = Callable[[str], int]
# A checkpoint's small files, name -> content, for its token numbers and a number of channels.
Files = Callable[[Token, int], dict[str, dict[str, Any]]]
# Model inputs by name: tensors, which no family imports.
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Vision:
    """How a family sees. Text-only families have none: what is about pictures is not planned for them."""

    tower: str  # prefix of its tensors
    attention: str  # end of the name of the attention in each of its layers
    markup: str  # of a picture in a text
    head: int  # channels of one of its attention's heads in published checkpoints


@dataclass(frozen=True)
class Denoiser:
    """How a family denoises latents. Others read tokens: what is about these is not planned for a denoiser.

    It is the transformer of a pipeline of diffusers, whose class has no auto class and no loss of its own.
    """

    # A sample, given a function from a shape to noise, and a time between 0 and 1 [1]: the arguments of the model, and the
    # velocity that it has to predict as TARGET, which has the shape of its prediction up to a longer second dimension.
    sample: Callable[[Callable[..., Any], Any], Inputs]


TARGET = "target"  # among the inputs of a denoiser's sample, what it has to predict


@dataclass(frozen=True)
class Merged:
    """Matrices that published checkpoints have one by one for each expert, and transformers 5 as one tensor for all of them.

    That one is [experts, rows of all parts of an expert, columns].
    """

    whole: str  # end of the name in the model
    parts: tuple[str, ...]  # ends of the published names, with {} for the expert

    def keys(self, name: str, experts: int) -> list[list[str]]:
        """Return for each expert the published names of the parts of the tensor `name`."""
        stem = name.removesuffix(self.whole)
        return [[f"{stem}{part.format(expert)}" for part in self.parts] for expert in range(experts)]


@dataclass(frozen=True)
class Turned:
    """A tensor for all experts, whose matrices published checkpoints have transposed, as transformers 5 no longer has them."""

    name: str  # end of it, the same in both
    rows: str  # what config.json calls the rows of a published matrix, which are not as many as its columns


@dataclass(frozen=True, kw_only=True)
class Family:
    """What differs between families. Tensors have their names in published checkpoints.

    Channels are those of the vision tower or, without one, of the language model or the denoiser, which is what is said of a
    language model here.
    """

    name: str  # model_type in config.json, which checkpoints of a denoiser lack
    model_class: str  # of transformers or, of a denoiser, of diffusers, which loads a checkpoint whole
    modules: tuple[str, ...]  # of that package, to import once before ranks are forked
    # Prefix in published checkpoints -> prefix in transformers `layouts_since` and later. The first that matches counts. Empty
    # where the names are the same.
    layouts: tuple[tuple[str, str], ...]
    language_probe: str  # end of the name of one weight in each layer of the language model, and of no other in it
    language_attention: str = ""  # end of the name of the attention in each of its layers
    cross_attention: str = ""  # end of the name of what reads an encoder's output in each of them, where one does
    # The first that an input meets: the patch embedding or, of a model that reads text only, the token embedding.
    first_tensor: str
    first_shape: tuple[int, ...]  # of it in a checkpoint of `width`; of a patch embedding, as in the family's real checkpoints
    missing_key: str  # a vector that the controls remove, or a matrix of a model that has no vectors
    flipped_tensor: str  # a matrix in which they flip a bit
    synthetic_parameters: int  # of the synthetic checkpoint, about
    files: Files  # of the synthetic checkpoint
    width: int  # channels of the synthetic checkpoint with `first_shape`
    since: str  # the first release of its package that has this model
    # The next eight are of models that read tokens.
    processor_files: tuple[str, ...] = ()  # of a checkpoint, which its processor is loaded from
    vocabulary_size: int = 0  # of the synthetic checkpoint, special tokens included
    special_tokens: tuple[str, ...] = ()
    turn_end: str = ""
    # Those of a synthetic checkpoint for usual sizes: patches are merged, attention is in windows where the family has them,
    # 4,096 positions.
    realistic_files: Files | None = None
    realistic_width: int = 0  # its channels
    head: int = 0  # channels of one head of the language model's attention in published checkpoints
    auto_class: str = "AutoModelForImageTextToText"  # of transformers, which loads a checkpoint whole
    # Channels of the synthetic checkpoint that is under test, 0 for `width`: with those of real ones most of a run's time went
    # into moving the numbers of the vision tower.
    trained_width: int = 0
    slim_width: int = 64  # channels of the one that controls load where the shape of the first tensor does not matter
    vision: Vision | None = None
    # The same of pieces of names, below the prefixes that `layouts` renames: the first that matches counts.
    pieces: tuple[tuple[str, str], ...] = ()
    layouts_since: str = "4.52"  # the first release of transformers with the later names
    # Prefixes of tensors that the model has and no output depends on: published checkpoints lack them.
    unpublished: tuple[str, ...] = ()
    # Whether a decoder writes the answer and what is asked goes to an encoder: text is then in the labels alone, and where the
    # encoder sees, every sample has a picture.
    encoder_decoder: bool = False
    denoiser: Denoiser | None = None
    absent: tuple[tuple[str, str], ...] = ()  # parts of published models that the class lacks, and why; reports say so
    # What other auto classes make of a checkpoint, where that is not what they make of most families' (`smoke_tests.measured`).
    auto_classes: tuple[tuple[str, str], ...] = ()
    # Experts, where transformers 5 has them in another form than published checkpoints.
    merged: tuple[Merged, ...] = ()
    turned: tuple[Turned, ...] = ()
    added_to_one: tuple[str, ...] = ()  # ends of the names of vectors that the model scales with after it added 1
    fused_attention: bool = True  # whether all parts of the model have attention that one kernel computes
    # Whether a module has two parameters, such as weight and bias, which ZeRO-3 gathers at once while it loads.
    gathers_pairs: bool = True
    # The scene of `smoke_tests.fixtures.samples` for which the synthetic checkpoint's first two tokens are clear; see
    # `smoke_tests.checks.generation`.
    clear_scene: int = 7
    # To a model that drops pictures whose pixels are all zero, as Idefics3 and SmolVLM do, `dummy` gives one of others.
    # How the family's processor is called, where the functions in `smoke_tests.fixtures.samples` do not fit: from processor,
    # question, pictures and answer to a training sample; from the first three to a prompt; from processor and a sample of text
    # to that sample with an empty picture that has no labels.
    sample: Callable[[Any, str, Sequence[Any], str], Inputs] | None = None
    prompt: Callable[[Any, str, Sequence[Any]], Inputs] | None = None
    dummy: Callable[[Any, Inputs], Inputs] | None = None

    def published(self, name: str) -> str:
        """Return the name in published checkpoints of a tensor in any layout."""
        prefixes, pieces = ([(later, published) for published, later in pairs] for pairs in (self.layouts, self.pieces))
        return self._renamed(name, prefixes, pieces)

    def later(self, name: str) -> str:
        """Return the name in `layouts_since` and later of a tensor in a published checkpoint."""
        return self._renamed(name, self.layouts, self.pieces)

    @staticmethod
    def _renamed(name: str, prefixes: Collection[tuple[str, str]], pieces: Collection[tuple[str, str]]) -> str:
        old, new = next(((old, new) for old, new in prefixes if name.startswith(old)), ("", None))
        if new is None:
            return name
        rest = name.removeprefix(old)
        piece, other = next(((piece, other) for piece, other in pieces if piece in rest), ("", ""))
        return new + rest.replace(piece, other, 1)

    def stored(self, name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return published name -> shape of what published checkpoints have of a tensor of the model; config is config.json."""
        name = self.published(name)
        if name.startswith(self.unpublished):
            return {}
        for merged in self.merged:
            if name.endswith(merged.whole):
                experts, rows, columns = shape
                part = (rows // len(merged.parts), columns)
                return {key: part for of_expert in merged.keys(name, experts) for key in of_expert}
        for turned in self.turned:
            if name.endswith(turned.name):
                experts, *matrix = shape
                rows = config.get("text_config", config)[turned.rows]
                return {name: (experts, *(matrix if matrix[0] == rows else reversed(matrix)))}
        return {name: shape}

    def is_vision(self, name: str) -> bool:
        """Whether a tensor, in any layout, belongs to the vision tower."""
        return self.vision is not None and self.published(name).startswith(self.vision.tower)

    @property
    def mixes_modalities(self) -> bool:
        """Whether its batches may have samples with a picture and samples of text only."""
        return self.vision is not None and not self.encoder_decoder

    @property
    def processor_class(self) -> str:
        """The auto class of transformers that loads what encodes its inputs."""
        return "AutoProcessor" if self.vision else "AutoTokenizer"

    @property
    def package(self) -> str:
        """The package that has the model."""
        return "diffusers" if self.denoiser else "transformers"

    @property
    def marker(self) -> tuple[str, str]:
        """The name and the value by which config.json shows that a checkpoint is of this family."""
        return ("_class_name", self.model_class) if self.denoiser else ("model_type", self.name)

    @property
    def index(self) -> str:
        """The name of the file that lists the shards of a checkpoint."""
        return f"{'diffusion_pytorch_' if self.denoiser else ''}model.safetensors.index.json"

    @property
    def file(self) -> str:
        """The module that describes this family."""
        return f"{__name__.replace('.', '/')}/{_module(self.name)}.py"

    def problems(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Return where this description does not fit a model, given published name -> shape of all its tensors."""
        language = [name for name in shapes if not self.is_vision(name)]
        problems = [
            f"tensor {getattr(self, field)!r} not found in the model, which has {_some(among)}; fix {field}"
            for field, among in (
                ("first_tensor", [*shapes][:1]),
                ("missing_key", [name for name in language if len(shapes[name]) == 1] or language),
                ("flipped_tensor", [name for name in language if len(shapes[name]) > 1]),
            )
            if getattr(self, field) not in shapes
        ]
        if self.vision and not self.is_vision(self.first_tensor):
            problems.append(f"{self.first_tensor!r} is outside {self.vision.tower!r}; fix vision.tower")
        if shapes.get(self.first_tensor, self.first_shape) != self.first_shape:
            found = list(shapes[self.first_tensor])
            problems.append(
                f"{self.first_tensor}: expected shape {list(self.first_shape)}, found {found}; fix first_shape or files"
            )
        if not any(name.endswith(self.language_probe) for name in language):
            problems.append(
                f"no tensor of the language model ends with {self.language_probe!r}, but {_some(language)}; fix language_probe"
            )
        if self.gathers_pairs != _has_pairs(shapes):
            problems.append(
                f"expected modules with {'two parameters' if self.gathers_pairs else 'one parameter'}; fix gathers_pairs"
            )
        return [f"{self.file}: {problem}" for problem in problems]


def _some(names: Sequence[str]) -> str:
    """Return what the last layer has among `names`, or the first of them; five, as a report has a line for all problems."""
    layers = [found[0] for name in names if (found := re.match(r".*?\.\d+\.", name))]
    layer = layers[-1] if layers else ""
    own = [name.removeprefix(layer) for name in names if name.startswith(layer)][:5]
    return f"{layer}{{{', '.join(own)}}}" if len(own) > 1 else f"{layer}{', '.join(own)}" or "none"


def _has_pairs(names: Collection[str]) -> bool:
    """Return whether two tensors are of one module, so that ZeRO-3 gathers them at once."""
    modules = [name.rpartition(".")[0] for name in names]
    return len(modules) != len(set(modules))


def _module(name: str) -> str:
    """Return the module of the family `name`: a model type may have hyphens."""
    return name.replace("-", "_")


def resized(
    found: dict[str, dict[str, Any]], language: dict[str, Any], vision: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return small files for long texts, with other sizes of the language model and the vision tower in config.json."""
    config, longer = found["config.json"], language | {"max_position_embeddings": POSITIONS}
    sizes = {"text_config": config["text_config"] | longer} if "text_config" in config else longer
    if vision:
        sizes["vision_config"] = config["vision_config"] | vision
    return found | {
        "config.json": config | sizes,
        "tokenizer_config.json": found["tokenizer_config.json"] | {"model_max_length": POSITIONS},
    }


def names() -> list[str]:
    """Return the names of all families."""
    return sorted(get(module.name).name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Family:
    """Return the family `name`, one of `names()`."""
    family: Family = importlib.import_module(f"{__name__}.{_module(name)}").FAMILY
    return family
