"""Images: which layers a lock makes, and what an image is called."""

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from smokehouse.errors import UserError
from smokehouse.images.dockerfile import SLOTS
from smokehouse.locks.model import Lock, LockedFile

_LARGE = 100_000_000  # bytes

# What a user changes while the rest stays, and what of that is changed most, and alone.
_MODEL = frozenset(
    ["accelerate", "datasets", "deepspeed", "huggingface-hub", "liger-kernel", "math-verify", "peft", "qwen-vl-utils"]
    + ["safetensors", "tokenizers", "trl"]
)
_ALONE = "transformers"


@dataclass(frozen=True)
class Layer:
    """A layer of wheels and source distributions; it may have `budget` bytes unpacked and compiled."""

    files: tuple[LockedFile, ...]

    @property
    def budget(self) -> int:
        """Measured on qwen2.5-vl: 1.3 to 5 times the files, and 9.5 times the 10 MB of transformers; the rest is for those."""
        return sum(file.size for file in self.files) * 6 + (64 << 20)


def layers(manifest: Lock, added: Sequence[LockedFile] = ()) -> tuple[list[Layer], list[Layer]]:
    """Return the layers of libraries and those above them, bottom first; raises UserError.

    Above are what is changed alone, each wheel that was `added` and no lock names, and last what changes with the model,
    which has all that is built from source: on the libraries, so that nothing above has to do with it.

    A wheel's layer depends on the wheel and those beside it only, so equal ones are equal in every environment.
    """
    ordered = sorted(manifest.pip, key=lambda file: file.name)
    model = [file for file in ordered if canonicalize_name(file.name) in _MODEL or not file.file.endswith(".whl")]
    rest = [file for file in ordered if file not in model]
    alone = [file for file in rest if file.name == _ALONE]
    large = [file for file in rest if file.size >= _LARGE and file not in alone]
    small = [file for file in rest if file not in large and file not in alone]
    nvidia = [file for file in small if file.name.startswith("nvidia-")]
    common = [file for file in small if file not in nvidia]
    libraries = [Layer(tuple(files)) for files in (*([file] for file in large), nvidia, common) if files]
    above = [Layer((file,)) for file in (*alone, *added)]
    if len(libraries) + len(above) > SLOTS:
        count = len(libraries) + len(above)
        raise UserError(
            f"{manifest.environment}: expected at most {SLOTS} layers of wheels, found {count}; "
            f"raise SLOTS in src/smokehouse/images/dockerfile.py"
        )
    return libraries, [*above, Layer(tuple(model))]
