"""Digests of what each rank holds: taken when a checkpoint is saved, compared when training resumes from it.

    engine.save_checkpoint(folder)
    save_digests(model, folder)
    ...
    engine.load_checkpoint(folder)
    check_digests(model, folder)

What lies between the two is a disk, a network and the code that saves and loads: none of them may change a bit.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smokehouse_loader import compare, zero
from smokehouse_loader.config_files import read_object
from smokehouse_loader.consensus import Consensus, rank
from smokehouse_loader.errors import Finding, first_line, shortened
from smokehouse_loader.safetensors_header import BadFileError

_FORMAT = 1
_REFUSED = "resume from another checkpoint, or save this one again: it does not hold what the model had"


def save_digests(model: Any, folder: str | Path) -> Path:
    """Write the SHA-256 of each parameter and buffer on this rank beside a checkpoint in `folder`; return the file.

    Under ZeRO-3 those of its partitions, without a gather. Every rank has to call it, with the model that was saved, or an
    engine with it as `module`. Raises LoadError, the same on every rank, if a rank cannot write its file.
    """
    consensus = Consensus()
    number, world = _place()
    file = Path(folder) / _name(number, world)
    content = {"format": _FORMAT, "algorithm": "sha256", "tensors": dict(_digests(model))}
    wrong = []
    try:
        _write(file, json.dumps(content, indent=1))
    except OSError as error:
        wrong.append(
            Finding(
                "wrong-bits", str(file), f"cannot be written: {error.strerror or error}", "free disk space or fix permissions"
            )
        )
    consensus.agree(wrong)
    return file


def check_digests(model: Any, folder: str | Path) -> None:
    """Raise LoadError, the same on every rank, unless each rank holds the bits that `save_digests` saw.

    Every rank has to call it, after the checkpoint in `folder` was loaded into the model and before a step changes it.
    """
    consensus = Consensus()
    try:
        found = [*_differences(model, Path(folder))]
    except BadFileError as bad:
        found = [Finding("wrong-bits", str(folder), f"digests: {bad}", _REFUSED)]
    except Exception as error:  # noqa: BLE001 - the other ranks wait for this one's answer
        found = [Finding("wrong-bits", str(folder), f"digests cannot be compared: {first_line(error)}", _REFUSED)]
    consensus.agree(found)


def _differences(model: Any, folder: Path) -> Iterator[Finding]:
    number, world = _place()
    file = folder / _name(number, world)
    if not file.is_file():
        others = sorted(folder.glob("tensor-digests-rank*-of-*.json"))
        what = f"no digests of rank {number} of {world}"
        if others:
            what += f", found {others[0].name}: digests are compared by as many ranks as saved them"
        yield Finding("wrong-bits", str(file), what, "call save_digests where the checkpoint is saved, on every rank")
        return
    stored = read_object(file)
    expected = stored.get("tensors")
    if stored.get("format") != _FORMAT or not isinstance(expected, dict):
        raise BadFileError("wrong-bits", f"{file.name}: expected format {_FORMAT}, found {str(stored.get('format'))[:20]}")
    found = dict(_digests(model))
    if lost := sorted(expected.keys() ^ found.keys()):
        what = f"{len(lost)} tensors are in the model or in the digests alone ({shortened(lost)})"
        yield Finding("wrong-bits", lost[0], what, "resume with the model class that was saved")
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    if wrong:
        yield Finding("wrong-bits", wrong[0], f"{len(wrong)} of {len(found)} tensors differ from what was saved", _REFUSED)


def _digests(model: Any) -> Iterator[tuple[str, str]]:
    """Yield name and "DTYPE SHAPE SHA-256" of what this rank holds of each tensor of a model, tied names included."""
    seen: dict[int, str] = {}
    for name, tensor in compare.state_of(getattr(model, "module", model)).items():
        if id(tensor) not in seen:
            local, start = zero.local_partition(tensor)
            kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(zero.full_shape(tensor))} from {start}"
            seen[id(tensor)] = f"{kind} {_sha256(local)}"
        yield name, seen[id(tensor)]


def _sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, copied from its device a chunk at a time."""
    digest = hashlib.sha256()
    flat = tensor.detach().reshape(-1)
    step = max(1, compare.CHUNK // flat.element_size())
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].cpu().contiguous()
        digest.update(memoryview(piece.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _place() -> tuple[int, int]:
    number = rank()
    return (0, 1) if number is None else (number, torch.distributed.get_world_size())


def _name(number: int, world: int) -> str:
    return f"tensor-digests-rank{number:05d}-of-{world:05d}.json"


def _write(file: Path, text: str) -> None:
    """Write a file that either is whole or does not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
