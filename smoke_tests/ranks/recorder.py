"""Which collectives each rank entered: a file per rank, which the supervisor reads when a rank hangs.

Every collective that Python code starts, whoever calls it, is a method of torch's `ProcessGroup`; `install` wraps those methods
and `Work.wait`. A rank writes to a mapped file, so that the supervisor can read it however the rank hangs: in C, stopped, or
killed. It costs some microseconds a collective. With NCCL, which works on streams, `entered` means that the host has queued it.

The file is a ring of `SLOTS` records of `SIZE` bytes each. A record is a line of text, filled up with spaces: state, number in
its group, name of the group, its ranks, kind, tensor. Imports no torch until it is installed.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOTS, SIZE = 64, 512
# Method of ProcessGroup -> the collective's name in torch.distributed, and which argument is what the rank puts in.
KINDS = {
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce_coalesced", 0),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
    "_allgather_base": ("all_gather_into_tensor", 1),
    "allgather": ("all_gather", 1),
    "allgather_coalesced": ("all_gather_coalesced", 1),
    "allgather_into_tensor_coalesced": ("all_gather_into_tensor_coalesced", 1),
    "_reduce_scatter_base": ("reduce_scatter_tensor", 1),
    "reduce_scatter": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter_tensor_coalesced", 1),
    "gather": ("gather", 1),
    "scatter": ("scatter", 1),
    "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all_single", 1),
    "barrier": ("barrier", -1),
    "monitored_barrier": ("monitored_barrier", -1),
}
# Those to which every rank gives a tensor of one size; the others may differ from rank to rank.
_SAME_SIZE = {"all_reduce", "broadcast", "reduce", "all_gather_into_tensor", "reduce_scatter_tensor"}
ENTERED, QUEUED, WAITING, LEFT = b"e", b"q", b"w", b"l"


@dataclass(frozen=True)
class Entry:
    """One collective that a rank entered. `number` counts the collectives of its group, from 1."""

    state: str  # e: in the call, q: the call has returned, w: waits for its end, l: its end was waited for
    number: int
    group: str
    ranks: tuple[int, ...]  # of the group, global
    kind: str
    tensor: str  # as in `float32[4, 2]`, empty for a barrier

    def __str__(self) -> str:
        """Return kind and tensor in words."""
        return f"{self.kind} of {self.tensor}" if self.tensor else self.kind

    @property
    def pending(self) -> bool:
        """Whether the rank has not seen its end."""
        return self.state != LEFT.decode()

    def differs(self, other: "Entry") -> bool:
        """Whether two ranks cannot mean the same collective."""
        return self.kind != other.kind or (self.kind in _SAME_SIZE and self.tensor != other.tensor)


class Recorder:
    """A rank's end: writes to its file what the wrapped methods are called with."""

    def __init__(self, file: Path) -> None:
        """Create the file with all its space, as a mapped page without a block on the disk kills. Raises OSError."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SLOTS * SIZE)
            self._map = mmap.mmap(descriptor, SLOTS * SIZE)
        finally:
            os.close(descriptor)
        self._entered = 0  # collectives, of all groups
        self._groups: dict[str, str] = {}  # name -> name in words and ranks
        self._numbers: dict[str, int] = {}
        self._works: dict[int, int] = {}  # id of a Work -> which of the collectives it is

    def install(self) -> None:
        """Wrap the methods of torch's process groups in this process."""
        from torch._C._distributed_c10d import ProcessGroup, Work

        for method, (kind, argument) in KINDS.items():
            if hasattr(ProcessGroup, method):
                setattr(ProcessGroup, method, self._wrapped(getattr(ProcessGroup, method), kind, argument))
        setattr(Work, "wait", self._wrapped_wait(Work.wait))  # noqa: B010 - a method of C++

    def _wrapped(self, method: Callable[..., Any], kind: str, argument: int) -> Callable[..., Any]:
        def collective(group: Any, *args: Any, **kwargs: Any) -> Any:
            entered = self._enter(group, kind, args[argument] if 0 <= argument < len(args) else None)
            work = method(group, *args, **kwargs)
            self._mark(entered, QUEUED)
            if len(self._works) >= SLOTS:  # of works that nobody waits for
                self._works.clear()
            self._works[id(work)] = entered
            return work

        return collective

    def _wrapped_wait(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            entered = self._works.pop(id(work), None)
            if entered is None:
                return method(work, *args, **kwargs)
            self._mark(entered, WAITING)
            result = method(work, *args, **kwargs)
            self._mark(entered, LEFT)
            return result

        return wait

    def _enter(self, group: Any, kind: str, given: Any) -> int:
        """Write a record, and return which of all collectives it is."""
        name = group.group_name
        if name not in self._groups:
            self._groups[name] = _describe_group(group)
        self._numbers[name] = number = self._numbers.get(name, 0) + 1
        text = f"{ENTERED.decode()}\t{number}\t{self._groups[name]}\t{kind}\t{_tensor(given)}".encode()[: SIZE - 1]
        entered, self._entered = self._entered, self._entered + 1
        place = entered % SLOTS * SIZE
        self._map[place : place + SIZE] = text.ljust(SIZE - 1) + b"\n"
        return entered

    def _mark(self, entered: int, state: bytes) -> None:
        """Write a record's new state, unless a later one has taken its place."""
        if self._entered - entered <= SLOTS:
            place = entered % SLOTS * SIZE
            self._map[place : place + 1] = state


def _describe_group(group: Any) -> str:
    import torch.distributed as dist

    try:
        ranks = dist.get_process_group_ranks(group)
    except (KeyError, ValueError):  # while torch initialises it
        ranks = list(range(group.size()))
    name = "the default group" if group.group_desc == "default_pg" else f"group {group.group_name}"
    return f"{name}\t{','.join(map(str, ranks))}"


def _tensor(given: Any) -> str:
    """Return type and shape of the first tensor in an argument, and how many more there are."""
    more = 0
    while isinstance(given, list | tuple):
        more += max(0, len(given) - 1)
        given = given[0] if given else None
    if given is None:
        return ""
    text = f"{str(given.dtype).removeprefix('torch.')}{list(given.shape)}"
    return f"{text} and {more} more" if more else text


def read(file: Path) -> list[Entry]:
    """Return what a rank entered last, in order; empty where it has no such file. Skips a record that is being written."""
    found = []
    with contextlib.suppress(OSError):
        for line in file.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                state, number, group, ranks, kind, tensor = line.decode(errors="replace").rstrip(" ").split("\t")
                found.append(Entry(state, int(number), group, tuple(map(int, ranks.split(","))), kind, tensor))
    return sorted(found, key=lambda entry: (entry.group, entry.number))


def explain(entries: Mapping[int, Sequence[Entry]]) -> str:
    """Return which collective ranks hang in, who has arrived and who has not; empty where none was entered.

    `entries` are what each rank entered last. In this order: the first that differs between ranks, the first that some have
    not reached, the last that all have reached.
    """
    groups = dict.fromkeys(entry.group for of_rank in entries.values() for entry in of_rank)
    of_group = {
        group: {rank: {e.number: e for e in of_rank if e.group == group} for rank, of_rank in entries.items()}
        for group in groups
    }
    for find in (_different, _unreached):
        found = [said for group, ranks in of_group.items() if (said := find(group, ranks))]
        if found:
            # Where several groups are behind, the one with a rank that still waits says it.
            return max(found)[1]
    return _reached_by_all(entries)


def _members(ranks: Mapping[int, Mapping[int, Entry]]) -> dict[int, Mapping[int, Entry]]:
    """Return what each member of a group entered, those that entered nothing included."""
    members = {rank for of_rank in ranks.values() for entry in of_rank.values() for rank in entry.ranks}
    return {rank: of_rank for rank, of_rank in sorted(ranks.items()) if rank in members}


def _different(group: str, ranks: Mapping[int, Mapping[int, Entry]]) -> tuple[bool, str] | None:
    numbers = sorted({number for of_rank in ranks.values() for number in of_rank})
    for number in numbers:
        here = {rank: of_rank[number] for rank, of_rank in sorted(ranks.items()) if number in of_rank}
        first = next(iter(here.values()))
        if any(entry.differs(first) for entry in here.values()):
            said = ", ".join(f"rank {rank} entered {entry}" for rank, entry in here.items())
            pending = any(entry.pending for entry in here.values())
            return pending, f"ranks run different collectives: as number {number} of {group} {said}"
    return None


def _unreached(group: str, ranks: Mapping[int, Mapping[int, Entry]]) -> tuple[bool, str] | None:
    members = _members(ranks)
    last = {rank: max(of_rank, default=0) for rank, of_rank in members.items()}
    if len(set(last.values())) < 2:
        return None
    possible = range(min(last.values()) + 1, max(last.values()) + 1)
    waits = [number for number in possible if any(number in r and r[number].pending for r in members.values())]
    number = waits[0] if waits else possible[0]
    entry = next(of_rank[number] for of_rank in members.values() if number in of_rank)
    arrived = _in_words(rank for rank in members if last[rank] >= number)
    missing = _in_words(rank for rank in members if last[rank] < number)
    latest = {f"number {last[rank]}, {members[rank][last[rank]]}" for rank in members if 0 < last[rank] < number}
    before = f" (last: {latest.pop()})" if len(latest) == 1 else ""
    return bool(waits), f"{entry}, number {number} of {group}: arrived {arrived}; not arrived {missing}{before}"


def _reached_by_all(entries: Mapping[int, Sequence[Entry]]) -> str:
    every = [entry for of_rank in entries.values() for entry in of_rank]
    pending = [entry for entry in every if entry.pending]
    if not every:
        return ""
    last = max(pending or every, key=lambda entry: (entry.state == WAITING.decode(), entry.number))
    where = f"{last}, number {last.number} of {last.group}"
    if not pending:
        return f"no collective is pending; the last was {where}"
    return f"{where}: arrived {_in_words(last.ranks)}; not arrived none"


def _in_words(ranks: Iterable[int]) -> str:
    numbers = list(map(str, ranks))
    shown = ", ".join(numbers[:16]) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
