"""Labels and tags of an image."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Literal

from smokehouse.errors import UserError
from smokehouse.images.base import Base
from smokehouse.images.extra_wheels import LABEL, ExtraWheel
from smokehouse.locks.model import Lock
from smokehouse.storage.files import sha256

Flavour = Literal["runtime", "devel"]
Ops = Literal["none", "aot"]

# NVIDIA's table of minor version compatibility: https://docs.nvidia.com/deploy/cuda-compatibility/
_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


def created(manifest: Lock) -> datetime:
    """Return the time that an image says it was made at: the end of what its lock knows of."""
    return datetime.combine(manifest.cutoff, time(), UTC)


def driver(cuda: str) -> str:
    """Return the oldest NVIDIA driver that runs programs of CUDA `cuda`; raises UserError where none is known."""
    major = cuda.partition(".")[0]
    if major not in _DRIVERS:
        raise UserError(f"CUDA {cuda}: no oldest driver is known for it; add it to src/smokehouse/images/labels.py")
    return _DRIVERS[major]


def stack(manifest: Lock, cuda: str) -> dict[str, str]:
    """Return the versions of what an image is known by, as far as it has them."""
    versions = {file.name: file.version for file in manifest.pip}
    found: dict[str, str] = {name: versions[name] for name in ("torch", "transformers", "deepspeed") if name in versions}
    return {"python": manifest.python, "cuda": cuda, **found}


def tags(manifest: Lock, cuda: str, lock: str, flavour: Flavour, added: Sequence[ExtraWheel] = ()) -> list[str]:
    """Return the names of an image: by its stack and lock (`lock` is the SHA-256 of lock.json), and by the cut-off date.

    Both tell apart what was `added`.
    """
    suffix = "" if flavour == "runtime" else f"-{flavour}"
    suffix += f"-with-{sha256(' '.join(sorted(one.sha256 for one in added)))[:8]}" if added else ""
    torch = stack(manifest, cuda).get("torch", "none").partition("+")[0]
    by_stack = f"cu{cuda.replace('.', '')}-torch{torch}-{lock[:12]}{suffix}"
    return [f"{manifest.environment}:{by_stack}", f"{manifest.environment}:{manifest.cutoff:%Y%m%d}-{lock[:12]}{suffix}"]


def labels(
    manifest: Lock,
    cuda: str,
    lock: str,
    flavour: Flavour,
    base: Base,
    ops: Ops,
    origin: Mapping[str, str],
    added: Sequence[ExtraWheel] = (),
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
