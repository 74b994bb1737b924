"""The layers of an image: which wheels share one, and in which order they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from smokehouse.errors import UserError
from smokehouse.images.dockerfile import SLOTS
from smokehouse.locks import Lock, LockedFile

_LARGE = 100_000_000  # bytes

# What users change while the rest stays, and the one of these that they change most often, and alone.
_MODEL = frozenset(
    ["accelerate", "datasets", "deepspeed", "huggingface-hub", "liger-kernel", "math-verify", "peft", "qwen-vl-utils"]
    + ["safetensors", "tokenizers", "trl"]
)
_CHANGED_ALONE = "transformers"


@dataclass(frozen=True)
class Layer:
    """A layer of wheels and source distributions."""

    files: tuple[LockedFile, ...]

    @property
    def budget(self) -> int:
        """The most bytes that the layer may have, unpacked and compiled.

        Measured: 1.3 to 5 times the size of its files, but 9.5 times for transformers, which has 10 MB.
        """
        return sum(file.size for file in self.files) * 6 + (64 << 20)


@dataclass(frozen=True)
class Plan:
    """The layers of an image's wheels, bottom first: `libraries`, then `single` packages, then `model`.

    Each layer of `single` has one package that is changed alone. `model` has what changes with the model, and all source
    distributions, which are built on the libraries and so depend on no layer above these.
    """

    libraries: tuple[Layer, ...]
    single: tuple[Layer, ...]
    model: Layer

    @property
    def numbered(self) -> tuple[Layer, ...]:
        """The layers that take a slot of docker/Dockerfile: all but `model`."""
        return (*self.libraries, *self.single)


def plan_layers(lock: Lock, extra_wheels: Sequence[LockedFile] = ()) -> Plan:
    """Return the layers of an image of `lock` with `extra_wheels`, each of which has a layer of its own.

    A layer depends on its own wheels only, so environments share the layers that are equal.

    Raises:
        UserError: docker/Dockerfile has too few slots.
    """
    ordered = sorted(lock.pip, key=lambda file: file.name)
    model = [file for file in ordered if canonicalize_name(file.name) in _MODEL or not file.file.endswith(".whl")]
    rest = [file for file in ordered if file not in model]
    alone = [file for file in rest if file.name == _CHANGED_ALONE]
    large = [file for file in rest if file.size >= _LARGE and file not in alone]
    small = [file for file in rest if file not in large and file not in alone]
    nvidia = [file for file in small if file.name.startswith("nvidia-")]
    common = [file for file in small if file not in nvidia]
    libraries = tuple(Layer(tuple(files)) for files in (*([file] for file in large), nvidia, common) if files)
    plan = Plan(libraries, tuple(Layer((file,)) for file in (*alone, *extra_wheels)), Layer(tuple(model)))
    if len(plan.numbered) > SLOTS:
        raise UserError(
            f"{lock.environment}: expected at most {SLOTS} layers of wheels, found {len(plan.numbered)}; "
            f"raise SLOTS in src/smokehouse/images/dockerfile.py"
        )
    return plan
