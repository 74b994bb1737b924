"""The labels of an image: written when it is built; parsed when it is verified, published or run.

See: https://github.com/opencontainers/image-spec/blob/main/annotations.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from smokehouse.checkout import ENVIRONMENT_LABEL, is_environment_name
from smokehouse.console import as_typed
from smokehouse.errors import UserError

Flavour = Literal["runtime", "devel"]
Ops = Literal["none", "aot"]

STACK = ("python", "cuda", "torch", "transformers", "deepspeed")
EXTRA_WHEELS = "io.smokehouse.with"

_FLAVOUR = "io.smokehouse.flavour"
_LOCK = "io.smokehouse.lock"
_OPS = "io.smokehouse.ops"
_STACK = {name: f"io.smokehouse.{name}" for name in STACK}

_TITLE = "org.opencontainers.image.title"
_DESCRIPTION = "org.opencontainers.image.description"
_VERSION = "org.opencontainers.image.version"
_CREATED = "org.opencontainers.image.created"
_BASE_NAME = "org.opencontainers.image.base.name"
_BASE_DIGEST = "org.opencontainers.image.base.digest"
SOURCE = "org.opencontainers.image.source"

_FLAVOURS: dict[str, Flavour] = {name: name for name in get_args(Flavour)}
_ALL_OPS: dict[str, Ops] = {name: name for name in get_args(Ops)}


@dataclass(frozen=True)
class ImageLabels:
    """What an image says of itself.

    `lock` is the SHA-256 of lock.json in hex, `stack` has the versions of the packages in STACK that the image has.
    `version` is the image's tag by stack and lock, `created` an RFC 3339 time. `extra_wheels` lists wheels that are not in
    the lock as `--with` takes them. `source` is the URL of the checkout, empty if unknown.
    """

    environment: str
    flavour: Flavour
    lock: str
    ops: Ops
    stack: Mapping[str, str]
    version: str
    created: str
    base_name: str
    base_digest: str
    extra_wheels: tuple[str, ...] = ()
    source: str = ""

    @classmethod
    def parse(cls, labels: Mapping[str, str], image: str) -> "ImageLabels":
        """Parse the labels of `image`, a name for messages. What else than these is missing is empty.

        Raises:
            UserError: the environment, the flavour or the ops are missing or invalid.
        """
        environment, flavour, ops = (labels.get(name, "") for name in (ENVIRONMENT_LABEL, _FLAVOUR, _OPS))
        for name, valid, expected in (
            (ENVIRONMENT_LABEL, is_environment_name(environment), "the name of an environment"),
            (_FLAVOUR, flavour in _FLAVOURS, " or ".join(_FLAVOURS)),
            (_OPS, ops in _ALL_OPS, " or ".join(_ALL_OPS)),
        ):
            if not valid:
                found = repr(labels[name]) if name in labels else "none"
                raise UserError(
                    f"{image}: not an image of Smokehouse: label {name}: expected {expected}, found {found}; "
                    f"use an image that {as_typed('build')} made"
                )
        return cls(
            environment=environment,
            flavour=_FLAVOURS[flavour],
            lock=labels.get(_LOCK, ""),
            ops=_ALL_OPS[ops],
            stack={name: labels[label] for name, label in _STACK.items() if label in labels},
            version=labels.get(_VERSION, ""),
            created=labels.get(_CREATED, ""),
            base_name=labels.get(_BASE_NAME, ""),
            base_digest=labels.get(_BASE_DIGEST, ""),
            extra_wheels=tuple(labels.get(EXTRA_WHEELS, "").split()),
            source=labels.get(SOURCE, ""),
        )

    def as_dict(self) -> dict[str, str]:
        """Return the labels by name, sorted."""
        labels = {
            ENVIRONMENT_LABEL: self.environment,
            _FLAVOUR: self.flavour,
            _LOCK: self.lock,
            _OPS: self.ops,
            _TITLE: self.environment,
            _DESCRIPTION: f"{self.environment}, {self.flavour}: locked and proven by Smokehouse",
            _VERSION: self.version,
            _CREATED: self.created,
            _BASE_NAME: self.base_name,
            _BASE_DIGEST: self.base_digest,
        }
        labels |= {_STACK[name]: version for name, version in self.stack.items()}
        optional = {EXTRA_WHEELS: " ".join(self.extra_wheels), SOURCE: self.source}
        labels |= {name: text for name, text in optional.items() if text}
        return dict(sorted(labels.items()))
