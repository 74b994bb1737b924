"""Save a model that ZeRO-3 may have partitioned, as its own save_pretrained saves a whole one: `save_model`."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smokehouse_loader import compare, denoisers, zero
from smokehouse_loader.consensus import Consensus
from smokehouse_loader.errors import Finding, first_line
from smokehouse_loader.failures import fix_for


def save_model(model: Any, path: str | Path, **kwargs: Any) -> None:
    """Save a denoiser, or what an engine of DeepSpeed trains of one, whole, in the directory `path`, which must not exist.

    `kwargs` are those of its save_pretrained, which alone would write the empty rest of each partitioned parameter. In a
    process group every rank has to call it: rank 0 gathers one tensor at a time into host memory, then writes them all. The
    directory appears once it is complete.

    Raises LoadError, the same on every rank, if it cannot be written, and ValueError for a model of another package:
    transformers' Trainer.save_model and DeepSpeed's save_16bit_model gather those.
    """
    module = getattr(model, "module", model)
    if not denoisers.is_denoiser(module):
        fix = "use Trainer.save_model, or engine.save_16bit_model"
        raise ValueError(f"model: expected a model of diffusers, found {type(module).__name__}; {fix}")
    consensus = Consensus()
    first = consensus.rank in (None, 0)
    consensus.agree([*_occupied(Path(path))] if first else [])
    state = {}
    with zero.safe_gathers():
        for name, tensor in compare.state_of(module).items():
            with _whole(tensor):
                if first:
                    state[name] = tensor.detach().cpu().clone()
    findings = []
    if first:
        try:
            _write(module, state, Path(path), kwargs)
        except Exception as error:  # noqa: BLE001 - whatever rank 0 raises, the others must learn of
            findings = [Finding("unmeasured", str(path), first_line(error), fix_for("unmeasured"))]
    consensus.agree(findings)


def _occupied(path: Path) -> Iterator[Finding]:
    if path.exists() or path.is_symlink():
        yield Finding("unmeasured", str(path), "expected no such directory yet, found one", "save to another, or remove it")


@contextlib.contextmanager
def _whole(tensor: Any) -> Iterator[None]:
    """Have a partitioned parameter whole in the with statement."""
    if not zero.is_partitioned(tensor):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        yield


def _write(module: Any, state: dict[str, Any], path: Path, kwargs: dict[str, Any]) -> None:
    """Have `module` save `state` as its own. save_pretrained of diffusers has no argument for it, and asks the module."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    module.state_dict = lambda *_, **__: state
    try:
        module.save_pretrained(partial, **kwargs)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        del module.state_dict
