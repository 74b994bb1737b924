"""Every bit of a model in memory against its file, with neither gathered nor held whole."""

import ctypes
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from smokehouse_loader import zero
from smokehouse_loader.checkpoint import DTYPES, Checkpoint, load_bin
from smokehouse_loader.keys import Plan
from smokehouse_loader.safetensors_header import SIZES

# What is read at once: it stays in a processor's cache while it is compared.
CHUNK = 4 * 2**20
_ALIGNMENT = 64
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# memcmp(3); a call lets go of the interpreter's lock, so that the next piece is read meanwhile.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality of bytes: tells 0 from -0 and finds equal NaNs equal."""
    return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(_integers(left), _integers(right)))


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])


class Part(NamedTuple):
    """The elements from `start` to `stop` of the file's tensor `key`, which is `name` in the model."""

    name: str
    key: str
    start: int
    stop: int


class Reader:
    """Reads parts of a checkpoint's tensors. What it takes of memory is two chunks, whatever the tensors' size."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Open nothing yet."""
        self._tensors = checkpoint.tensors
        self._descriptors: dict[Any, int] = {}
        self._mapped: dict[Any, dict[str, torch.Tensor]] = {}

    def __enter__(self) -> Self:
        """Use it in a with statement, which closes its files."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._mapped.clear()

    def stream(self, wanted: Iterable[Part]) -> Iterator[tuple[Part, torch.Tensor]]:
        """The elements of all `wanted` parts of tensors, flat, in the order of the files; each is valid until the next.

        Parts that are larger than a chunk come in pieces, in order. The next chunk is read while the last is looked at. Raises
        OSError where a file cannot be read, or ends before its tensors do.
        """
        buffers = itertools.cycle([bytearray(CHUNK), bytearray(CHUNK)])
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[list[tuple[Part, torch.Tensor]]] | None = None
            for batch in self._batches(wanted):
                coming = pool.submit(self._read, batch, next(buffers))
                if ahead:
                    yield from ahead.result()
                ahead = coming
            if ahead:
                yield from ahead.result()

    def _batches(self, wanted: Iterable[Part]) -> Iterator[list[Part]]:
        """`wanted` in the order of the files and cut into what fits a buffer: a hand-over for each small tensor is too much."""
        batch: list[Part] = []
        room = CHUNK
        for part in sorted(wanted, key=self._place):
            tensor = self._tensors[part.key]
            step = CHUNK // SIZES[tensor.dtype] if tensor.start is not None else max(1, part.stop - part.start)
            for start in range(part.start, part.stop, step):
                piece = Part(part.name, part.key, start, min(part.stop, start + step))
                need = self._room(piece)
                if batch and need > room:
                    yield batch
                    batch, room = [], CHUNK
                batch.append(piece)
                room -= need
        if batch:
            yield batch

    def _place(self, part: Part) -> tuple[str, int]:
        tensor = self._tensors[part.key]
        return os.fspath(tensor.file), tensor.start or 0

    def _room(self, part: Part) -> int:
        """The bytes of a buffer that a part takes, each part beginning where any type may."""
        tensor = self._tensors[part.key]
        length = (part.stop - part.start) * SIZES[tensor.dtype] if tensor.start is not None else 0
        return -(-length // _ALIGNMENT) * _ALIGNMENT

    def _read(self, batch: Sequence[Part], buffer: bytearray) -> list[tuple[Part, torch.Tensor]]:
        found, at = [], 0
        for part in batch:
            found.append((part, self._read_part(part, buffer, at)))
            at += self._room(part)
        return found

    def _read_part(self, part: Part, buffer: bytearray, offset: int) -> torch.Tensor:
        tensor = self._tensors[part.key]
        if tensor.start is None:
            return self._mapped_tensor(part.key).reshape(-1)[part.start : part.stop]
        dtype: torch.dtype = getattr(torch, DTYPES[tensor.dtype])
        if tensor.file not in self._descriptors:
            self._descriptors[tensor.file] = os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
        at, length = tensor.start + part.start * dtype.itemsize, (part.stop - part.start) * dtype.itemsize
        room = memoryview(buffer)[offset : offset + length]
        got = 0
        while got < length:
            count = os.preadv(self._descriptors[tensor.file], [room[got:]], at + got)
            if not count:
                raise OSError(f"{tensor.file} ended while it was read; something is writing to it")
            got += count
        return torch.frombuffer(buffer, dtype=dtype, count=part.stop - part.start, offset=offset)

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor, in its shape."""
        tensor = self._tensors[name]
        pieces = [piece.clone() for _, piece in self.stream([Part(name, name, 0, tensor.elements)])]
        return torch.cat([torch.empty(0, dtype=getattr(torch, DTYPES[tensor.dtype])), *pieces]).view(tensor.shape)

    def _mapped_tensor(self, name: str) -> torch.Tensor:
        file = self._tensors[name].file
        if file not in self._mapped:
            self._mapped[file] = load_bin(file, torch.device("cpu"))
        return self._mapped[file][name]


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Name -> parameter or buffer of all that a checkpoint holds of a model, parameters as the model has them."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters.get(name, value) for name, value in state.items()}


def filled(model: Any, plan: Plan) -> set[str]:
    """The names of the model's tensors that something of the file is loaded into, under this name or one that is tied to it."""
    state = state_of(model)
    loaded = {id(state[name]) for name in plan.renamed if name in state}
    return {name for name, tensor in state.items() if id(tensor) in loaded}


def wrong_tensors(model: Any, checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """Name -> what is wrong, for every tensor of the model that is not bit for bit what `checkpoint` holds for it.

    `plan` says which tensor of the file that is. A partitioned parameter is compared by the part that this rank holds, without
    a gather, and no more than two chunks of the file are in memory at once (for tensors that transformers merges or splits
    while it loads, what one such group takes). Values are compared in the model's own type, so a bf16 model of an fp32 file is
    right where each number was rounded once. Raises OSError where the checkpoint cannot be read.
    """
    state = state_of(model)
    wrong = wrong_shapes(model, checkpoint, plan)
    differing: dict[str, int] = {}
    with Reader(checkpoint) as reader:
        compared = {name: zero.held(state[name]) for name in plan.renamed if name not in wrong}
        parts = [Part(name, plan.renamed[name], start, start + held.numel()) for name, (held, start) in compared.items()]
        for part, stored in reader.stream(parts):
            held, start = compared[part.name]
            differing[part.name] = differing.get(part.name, 0) + _differing(
                held[part.start - start : part.stop - start], stored
            )
        for conversion in plan.conversions:
            made = conversion.apply({key: reader.whole(key) for key in conversion.sources})
            for name, value in made.items():
                if text := _shape_problem(state[name], tuple(value.shape)):
                    wrong[name] = text
                    continue
                held, start = zero.held(state[name])
                compared[name] = held, start
                differing[name] = _differing(held, value.reshape(-1)[start : start + held.numel()])
    for name, count in differing.items():
        if count:
            wrong[name] = f"differs in {count} of the {compared[name][0].numel()} elements held here"
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


def _differing(held: torch.Tensor, stored: torch.Tensor) -> int:
    """How many elements of two flat tensors are not the same to the bit, `stored` being taken as the type of `held`."""
    if held.is_meta:
        return int(held.numel())
    plain = held.device.type == "cpu" and held.dtype == stored.dtype and held.is_contiguous() and stored.is_contiguous()
    # Three times as fast as torch.equal; measured on 300 MB of int32.
    if plain and _memcmp(held.data_ptr(), stored.data_ptr(), held.numel() * held.element_size()) == 0:
        return 0
    stored = stored.to(device=held.device, dtype=held.dtype)
    return 0 if same_bits(held, stored) else int((_integers(held) != _integers(stored)).sum())


def untouched(model: Any, checkpoint: Checkpoint, plan: Plan, sample: int = 64) -> list[str]:
    """The parameters that hold nothing of what the checkpoint holds for them, by the first elements of this rank's part."""
    state = state_of(model)
    found = []
    with Reader(checkpoint) as reader:
        kept = {}
        for name, key in plan.renamed.items():
            parameter = state.get(name)
            if parameter is not None and not parameter.is_meta and not _shape_problem(parameter, checkpoint.tensors[key].shape):
                held, start = zero.held(parameter)
                kept[name] = held[:sample], start
        parts = [Part(name, plan.renamed[name], start, start + len(held)) for name, (held, start) in kept.items()]
        for part, stored in reader.stream(parts):
            held, _ = kept[part.name]
            if _differing(held, stored) == len(held):
                found.append(part.name)
    return found
