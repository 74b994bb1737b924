"""Every bit of a model in memory against its file, with neither gathered nor held whole."""

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch

from smokehouse_loader import zero
from smokehouse_loader.checkpoint import DTYPES, Checkpoint, load_bin
from smokehouse_loader.keys import Plan

# What is read at once: it stays in a processor's cache while it is compared.
CHUNK = 2 * 2**20
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality of bytes: tells 0 from -0 and finds equal NaNs equal."""
    return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(_integers(left), _integers(right)))


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])


class Reader:
    """Reads parts of a checkpoint's tensors. What it takes of memory is one chunk, whatever the tensors' size."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Open nothing yet."""
        self._tensors = checkpoint.tensors
        self._descriptors: dict[Any, int] = {}
        self._mapped: dict[Any, dict[str, torch.Tensor]] = {}
        self._buffer = bytearray(CHUNK)
        self._bytes = torch.frombuffer(self._buffer, dtype=torch.uint8)

    def __enter__(self) -> Self:
        """Use it in a with statement, which closes its files."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._mapped.clear()

    def chunks(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        """The elements from `start` to `stop` of a tensor, flat and in turn; each is valid until the next is asked for.

        Raises OSError where the file cannot be read, or ends before the tensor does.
        """
        tensor = self._tensors[name]
        if tensor.start is None:
            yield self._whole(name).reshape(-1)[start:stop]
            return
        dtype: torch.dtype = getattr(torch, DTYPES[tensor.dtype])
        if tensor.file not in self._descriptors:
            self._descriptors[tensor.file] = os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
        descriptor, width = self._descriptors[tensor.file], dtype.itemsize
        at, end = tensor.start + start * width, tensor.start + stop * width
        while at < end:
            room = memoryview(self._buffer)[: min(CHUNK, end - at)]
            got = 0
            while got < len(room):
                count = os.preadv(descriptor, [room[got:]], at + got)
                if not count:
                    raise OSError(f"{tensor.file} ended while it was read; something is writing to it")
                got += count
            yield self._bytes[:got].view(dtype)
            at += got

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor, in its shape."""
        tensor = self._tensors[name]
        if tensor.start is None:
            return self._whole(name)
        empty = torch.empty(0, dtype=getattr(torch, DTYPES[tensor.dtype]))
        return torch.cat([empty, *(chunk.clone() for chunk in self.chunks(name, 0, tensor.elements))]).view(tensor.shape)

    def _whole(self, name: str) -> torch.Tensor:
        file = self._tensors[name].file
        if file not in self._mapped:
            self._mapped[file] = load_bin(file, torch.device("cpu"))
        return self._mapped[file][name]


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Name -> parameter or buffer of all that a checkpoint holds of a model, parameters as the model has them."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters.get(name, value) for name, value in state.items()}


def wrong_tensors(model: Any, checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """Name -> what is wrong, for every tensor of the model that is not bit for bit what `checkpoint` holds for it.

    `plan` says which tensor of the file that is. A partitioned parameter is compared by the part that this rank holds, without
    a gather, and no more than a chunk of the file is in memory at once (for tensors that transformers merges or splits while
    it loads, what one such group takes). Values are compared in the model's own type, so a bf16 model of an fp32 file is right
    where each number was rounded once. Raises OSError where the checkpoint cannot be read.
    """
    state = state_of(model)
    wrong = {}
    with Reader(checkpoint) as reader:
        for name, key in plan.renamed.items():
            tensor = checkpoint.tensors[key]
            if name not in state:
                wrong[name] = "is in the file and not in the model"
            elif text := _shape_problem(state[name], tensor.shape):
                wrong[name] = text
            else:
                held, start = zero.held(state[name])
                if differing := _differing(held, reader.chunks(key, start, start + held.numel())):
                    wrong[name] = f"differs in {differing} of the {held.numel()} elements held here"
        for conversion in plan.conversions:
            made = conversion.apply({key: reader.whole(key) for key in conversion.sources})
            for name, value in made.items():
                if text := _shape_problem(state[name], tuple(value.shape)):
                    wrong[name] = text
                    continue
                held, start = zero.held(state[name])
                if differing := _differing(held, iter([value.reshape(-1)[start : start + held.numel()]])):
                    wrong[name] = f"differs in {differing} of the {held.numel()} elements held here"
    return wrong


def wrong_shapes(model: Any, checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """The same for shapes alone, with nothing read."""
    state = state_of(model)
    shapes = {name: checkpoint.tensors[key].shape for name, key in plan.renamed.items()}
    problems = {name: _shape_problem(state[name], shape) for name, shape in shapes.items() if name in state}
    lost = dict.fromkeys(shapes.keys() - state.keys(), "is in the file and not in the model")
    return {name: text for name, text in problems.items() if text} | lost


def _shape_problem(parameter: torch.Tensor, shape: tuple[int, ...]) -> str | None:
    found = zero.full_shape(parameter)
    return None if found == shape else f"is {list(found)} in the model and {list(shape)} in the file"


def _differing(held: torch.Tensor, chunks: Iterator[torch.Tensor]) -> int:
    """How many elements of `held` are not the ones in `chunks`."""
    if held.is_meta:
        return int(held.numel())
    at = differing = 0
    for chunk in chunks:
        part = held[at : at + chunk.numel()]
        at += chunk.numel()
        stored = chunk.to(device=part.device, dtype=part.dtype)
        if not same_bits(part, stored):
            differing += int((_integers(part) != _integers(stored)).sum())
    return differing


def untouched(model: Any, checkpoint: Checkpoint, plan: Plan, sample: int = 64) -> list[str]:
    """The parameters that hold nothing of what the checkpoint holds for them, judged by the first elements of this rank's
    part."""
    state = state_of(model)
    found = []
    with Reader(checkpoint) as reader:
        for name, key in plan.renamed.items():
            parameter = state.get(name)
            if parameter is None or parameter.is_meta or _shape_problem(parameter, checkpoint.tensors[key].shape):
                continue
            held, start = zero.held(parameter)
            held = held[:sample]
            if held.numel() and _differing(held, reader.chunks(key, start, start + held.numel())) == held.numel():
                found.append(name)
    return found
