"""The specification of an image: what it is built from, and the tags and labels that follow from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images.base import Base
from smokehouse.images.labels import STACK, Flavour, ImageLabels, Ops
from smokehouse.images.plan import Plan, plan_layers
from smokehouse.installs.extra_wheels import ExtraWheel, FetchedWheel
from smokehouse.locks import CondaPackage, Lock, LockedEnvironment
from smokehouse.storage.files import sha256

# The table that the preflight of the smoke tests reads, too.
_DRIVERS = "smoke_tests/machine/drivers.json"


@dataclass(frozen=True)
class ImageSpec:
    """What an image is built from. Its `extra_wheels` are in no lock; `source` is the URL of the checkout, empty if unknown."""

    locked: LockedEnvironment
    flavour: Flavour
    ops: Ops
    base: Base
    extra_wheels: tuple[FetchedWheel, ...] = ()
    source: str = ""

    @property
    def conda(self) -> tuple[CondaPackage, ...]:
        """The conda packages in the image."""
        return self.locked.lock.conda if self.flavour == "devel" else self.locked.lock.main

    @property
    def tags(self) -> list[str]:
        """The image's names, as `tags` gives them."""
        return tags(self.locked, self.flavour, [wheel.request for wheel in self.extra_wheels])

    @property
    def plan(self) -> Plan:
        """The layers of its wheels; raises UserError where docker/Dockerfile has too few slots."""
        return plan_layers(self.locked.lock, [wheel.file for wheel in self.extra_wheels])

    @property
    def labels(self) -> ImageLabels:
        """The image's labels."""
        lock = self.locked.lock
        return ImageLabels(
            environment=self.locked.name,
            flavour=self.flavour,
            lock=self.locked.digest,
            ops=self.ops,
            stack=stack(lock, self.locked.cuda),
            version=self.tags[0].partition(":")[2],
            created=created(lock),
            base_name=self.base.name,
            base_digest=self.base.digest,
            extra_wheels=tuple(wheel.request.text for wheel in sorted(self.extra_wheels, key=lambda wheel: wheel.request.name)),
            source=self.source,
        )


def tags(locked: LockedEnvironment, flavour: Flavour, extra_wheels: Sequence[ExtraWheel] = ()) -> list[str]:
    """Return an image's names: NAME:TAG by its stack and lock, then by its cut-off and lock; both depend on `extra_wheels`."""
    lock = locked.lock
    suffix = "" if flavour == "runtime" else f"-{flavour}"
    suffix += f"-with-{sha256(' '.join(sorted(wheel.sha256 for wheel in extra_wheels)))[:8]}" if extra_wheels else ""
    torch = stack(lock, locked.cuda).get("torch", "none").partition("+")[0]
    by_stack = f"cu{locked.cuda.replace('.', '')}-torch{torch}-{locked.digest[:12]}{suffix}"
    return [f"{locked.name}:{by_stack}", f"{locked.name}:{lock.cutoff:%Y%m%d}-{locked.digest[:12]}{suffix}"]


def stack(lock: Lock, cuda: str) -> dict[str, str]:
    """Return the versions of Python, CUDA and those packages of STACK that are locked, by name."""
    versions = {file.name: file.version for file in lock.pip} | {"python": lock.python, "cuda": cuda}
    return {name: versions[name] for name in STACK if name in versions}


def created(lock: Lock) -> str:
    """Return the time that an image of `lock` is labelled with: that of the cut-off, so that it depends on nothing else."""
    return f"{lock.cutoff}T00:00:00Z"


def oldest_driver(checkout: Checkout, cuda: str) -> str:
    """Return the oldest NVIDIA driver that supports CUDA `cuda`, such as 12.4; raises UserError where none is known."""
    drivers = json.loads(checkout.file(_DRIVERS).read_text())["oldest_driver_of_cuda"]
    major = cuda.partition(".")[0]
    if major not in drivers:
        raise UserError(
            f"CUDA {cuda}: expected a release whose oldest driver is known ({', '.join(drivers)}); add it to {_DRIVERS}"
        )
    return str(drivers[major])
