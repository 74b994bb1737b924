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

SOURCE = "org.opencontainers.image.source"

_FLAVOUR = "io.smokehouse.flavour"
_OPS = "io.smokehouse.ops"
_STACK = {name: f"io.smokehouse.{name}" for name in STACK}
_TITLE = "org.opencontainers.image.title"
_DESCRIPTION = "org.opencontainers.image.description"
# Fields of ImageLabels that are labels as they are.
_TEXTS = {
    "lock": "io.smokehouse.lock",
    "version": "org.opencontainers.image.version",
    "created": "org.opencontainers.image.created",
    "base_name": "org.opencontainers.image.base.name",
    "base_digest": "org.opencontainers.image.base.digest",
    "source": SOURCE,
}

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
            ops=_ALL_OPS[ops],
            stack={name: labels[label] for name, label in _STACK.items() if label in labels},
            extra_wheels=tuple(labels.get(EXTRA_WHEELS, "").split()),
            **{field: labels.get(label, "") for field, label in _TEXTS.items()},
        )

    def as_dict(self) -> dict[str, str]:
        """Return the labels by name, sorted, without those that are empty."""
        labels = {
            ENVIRONMENT_LABEL: self.environment,
            _FLAVOUR: self.flavour,
            _OPS: self.ops,
            _TITLE: self.environment,
            _DESCRIPTION: f"{self.environment}, {self.flavour}: locked and proven by Smokehouse",
            EXTRA_WHEELS: " ".join(self.extra_wheels),
        }
        labels |= {_STACK[name]: version for name, version in self.stack.items()}
        labels |= {label: getattr(self, field) for field, label in _TEXTS.items()}
        return {name: text for name, text in sorted(labels.items()) if text}
