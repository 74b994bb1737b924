"""Load checkpoints correctly, or report exactly what is wrong, on every rank.

    from smokehouse_loader import assert_ready, load_model

    model = load_model("path/to/checkpoint", verify="bits")  # in place of from_pretrained
    assert_ready(model)  # before deepspeed.initialize

The other names are the steps of `load_model`. They are imported on first use, so that `inspect_checkpoint` and `explain` work
at once, and without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smokehouse_loader.checkpoint import Checkpoint, inspect_checkpoint
    from smokehouse_loader.collators import dummy_images
    from smokehouse_loader.diagnosis import Diagnosis, explain
    from smokehouse_loader.digests import check_digests, save_digests
    from smokehouse_loader.errors import Finding, LoadError
    from smokehouse_loader.failures import FAILURES, Failure
    from smokehouse_loader.fit import Fit, check_checkpoint
    from smokehouse_loader.loading import load_model
    from smokehouse_loader.model_class import register, resolve_model_class
    from smokehouse_loader.ready import assert_ready
    from smokehouse_loader.safetensors_header import Tensor
    from smokehouse_loader.saving import save_model
    from smokehouse_loader.signature import Signer

_MODULES = {
    "Checkpoint": "checkpoint",
    "Diagnosis": "diagnosis",
    "FAILURES": "failures",
    "Failure": "failures",
    "Finding": "errors",
    "Fit": "fit",
    "LoadError": "errors",
    "Signer": "signature",
    "Tensor": "safetensors_header",
    "assert_ready": "ready",
    "check_checkpoint": "fit",
    "check_digests": "digests",
    "dummy_images": "collators",
    "explain": "diagnosis",
    "inspect_checkpoint": "checkpoint",
    "load_model": "loading",
    "register": "model_class",
    "resolve_model_class": "model_class",
    "save_digests": "digests",
    "save_model": "saving",
}

__all__ = [
    "FAILURES",
    "Checkpoint",
    "Diagnosis",
    "Failure",
    "Finding",
    "Fit",
    "LoadError",
    "Signer",
    "Tensor",
    "assert_ready",
    "check_checkpoint",
    "check_digests",
    "dummy_images",
    "explain",
    "inspect_checkpoint",
    "load_model",
    "register",
    "resolve_model_class",
    "save_digests",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
