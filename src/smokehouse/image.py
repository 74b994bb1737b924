"""Images: which layers a lock makes, and what an image is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Literal

from packaging.utils import canonicalize_name

from smokehouse.additions import LABEL, Asked
from smokehouse.base import Base
from smokehouse.errors import UserError
from smokehouse.locks.model import LockedFile, Manifest
from smokehouse.storage.files import sha256

Flavour = Literal["runtime", "devel"]
Ops = Literal["none", "aot"]

SLOTS = 16  # of docker/Dockerfile, for all layers of wheels but the last
_LARGE = 100_000_000  # bytes

# What a user changes while the rest stays, and what of that is changed most, and alone.
_MODEL = frozenset(
    ["accelerate", "datasets", "deepspeed", "huggingface-hub", "liger-kernel", "math-verify", "peft", "qwen-vl-utils"]
    + ["safetensors", "tokenizers", "trl"]
)
_ALONE = "transformers"

# NVIDIA's table of minor version compatibility: https://docs.nvidia.com/deploy/cuda-compatibility/
_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


@dataclass(frozen=True)
class Layer:
    """A layer of wheels and source distributions; it may have `budget` bytes unpacked and compiled."""

    files: tuple[LockedFile, ...]

    @property
    def budget(self) -> int:
        """Measured on qwen2.5-vl: 1.3 to 5 times the files, and 9.5 times the 10 MB of transformers; the rest is for those."""
        return sum(file.size for file in self.files) * 6 + (64 << 20)


def layers(manifest: Manifest, added: Sequence[LockedFile] = ()) -> tuple[list[Layer], list[Layer]]:
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
        raise UserError(f"{manifest.environment}: {count} layers, docker/Dockerfile has room for {SLOTS}; add to both")
    return libraries, [*above, Layer(tuple(model))]


def created(manifest: Manifest) -> datetime:
    """Return the time that an image says it was made at: the end of what its lock knows of."""
    return datetime.combine(manifest.cutoff, time(), UTC)


def driver(cuda: str) -> str:
    """Return the oldest NVIDIA driver that runs programs of CUDA `cuda`; raises UserError where none is known."""
    major = cuda.partition(".")[0]
    if major not in _DRIVERS:
        raise UserError(f"CUDA {cuda}: no oldest driver is known for it; add it to src/smokehouse/image.py")
    return _DRIVERS[major]


def stack(manifest: Manifest, cuda: str) -> dict[str, str]:
    """Return the versions of what an image is known by, as far as it has them."""
    versions = {file.name: file.version for file in manifest.pip}
    found: dict[str, str] = {name: versions[name] for name in ("torch", "transformers", "deepspeed") if name in versions}
    return {"python": manifest.python, "cuda": cuda, **found}


def tags(manifest: Manifest, cuda: str, lock: str, flavour: Flavour, added: Sequence[Asked] = ()) -> list[str]:
    """Return the names of an image: by its stack and lock (`lock` is the SHA-256 of lock.json), and by the cut-off date.

    Both tell apart what was `added`.
    """
    suffix = "" if flavour == "runtime" else f"-{flavour}"
    suffix += f"-with-{sha256(' '.join(sorted(one.sha256 for one in added)))[:8]}" if added else ""
    torch = stack(manifest, cuda).get("torch", "none").partition("+")[0]
    by_stack = f"cu{cuda.replace('.', '')}-torch{torch}-{lock[:12]}{suffix}"
    return [f"{manifest.environment}:{by_stack}", f"{manifest.environment}:{manifest.cutoff:%Y%m%d}-{lock[:12]}{suffix}"]


def labels(
    manifest: Manifest,
    cuda: str,
    lock: str,
    flavour: Flavour,
    base: Base,
    ops: Ops,
    origin: Mapping[str, str],
    added: Sequence[Asked] = (),
) -> dict[str, str]:
    """Return an image's labels; `lock` is the SHA-256 of lock.json and `origin` has source and revision where known."""
    about = {f"io.smokehouse.{name}": version for name, version in stack(manifest, cuda).items()}
    opencontainers = {
        "title": manifest.environment,
        "description": f"{manifest.environment}, {flavour}: locked and proven by Smokehouse",
        "version": tags(manifest, cuda, lock, flavour, added)[0].partition(":")[2],
        "created": created(manifest).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "base.name": base.name,
        "base.digest": base.digest,
        **origin,
    }
    about |= {f"org.opencontainers.image.{name}": text for name, text in opencontainers.items()}
    about |= {
        "io.smokehouse.environment": manifest.environment,
        "io.smokehouse.flavour": flavour,
        "io.smokehouse.lock": lock,
        "io.smokehouse.ops": ops,
    }
    if added:
        about[LABEL] = " ".join(one.text for one in sorted(added, key=lambda one: one.name))
    return dict(sorted(about.items()))
