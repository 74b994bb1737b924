"""Loads a checkpoint right, or says exactly why not, on every rank.

`load_model` stands in for `from_pretrained`; the rest is what it is made of. Nothing here imports torch before it is used, so
that `inspect_checkpoint` and `explain` work, and answer at once, where there is no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smokehouse_loader.checkpoint import Checkpoint, inspect_checkpoint
    from smokehouse_loader.diagnosis import Diagnosis, explain
    from smokehouse_loader.errors import Finding, LoadError
    from smokehouse_loader.failures import FAILURES, Failure
    from smokehouse_loader.fit import Fit, check_checkpoint
    from smokehouse_loader.loading import load_model
    from smokehouse_loader.model_class import register, resolve_model_class
    from smokehouse_loader.ready import assert_ready
    from smokehouse_loader.safetensors_header import Tensor

_HOMES = {
    "Checkpoint": "checkpoint",
    "Diagnosis": "diagnosis",
    "FAILURES": "failures",
    "Failure": "failures",
    "Finding": "errors",
    "Fit": "fit",
    "LoadError": "errors",
    "Tensor": "safetensors_header",
    "assert_ready": "ready",
    "check_checkpoint": "fit",
    "explain": "diagnosis",
    "inspect_checkpoint": "checkpoint",
    "load_model": "loading",
    "register": "model_class",
    "resolve_model_class": "model_class",
}

__all__ = [
    "FAILURES",
    "Checkpoint",
    "Diagnosis",
    "Failure",
    "Finding",
    "Fit",
    "LoadError",
    "Tensor",
    "assert_ready",
    "check_checkpoint",
    "explain",
    "inspect_checkpoint",
    "load_model",
    "register",
    "resolve_model_class",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
