"""One verdict for all ranks: each says what it saw, and all raise the same error or none does."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from smokehouse_loader.errors import Finding, LoadError, first_line
from smokehouse_loader.failures import cure_of

_attempts = 0


def rank() -> int | None:
    """This process's rank, None outside of a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else None


class Verdict:
    """What the ranks agree on in one load. Made by all ranks together, in the same order of loads."""

    def __init__(self) -> None:
        """Take the number of this load: the same on every rank, since all ranks load together."""
        global _attempts
        _attempts += 1
        self._key = f"smokehouse_loader/{_attempts}"
        self.rank = rank()
        self._group = _group() if self.rank is not None else None

    def agree(self, findings: Sequence[Finding]) -> None:
        """Tell the other ranks of `findings`, and raise LoadError with those of all ranks where there is one.

        Where a rank is gone, the others raise what it said last, or that it is gone.
        """
        mine = tuple(finding.on(self.rank) for finding in findings)
        if self.rank is None:
            if mine:
                raise LoadError(mine)
            return
        heard: list[Any] = [None] * dist.get_world_size()
        try:
            dist.all_gather_object(heard, mine, group=self._group)
        except RuntimeError as closed:
            raise self.lost(closed) from closed
        if found := [finding for said in heard for finding in said]:
            raise LoadError(found)

    def fail(self, error: Exception, finding: Finding) -> LoadError:
        """The error for a failure in the middle of the load, where the others may be waiting in a collective of their own.

        It is left in the store of the process group, for them to find when they lose this rank; whoever came first is right.
        """
        return LoadError([self._first(finding.on(self.rank)) or finding.on(self.rank)])

    def lost(self, error: Exception) -> LoadError:
        """The error of a rank that lost its connection to another."""
        what = f"lost another rank: {first_line(error)}"
        mine = Finding("lost-peer", "torch.distributed", what, cure_of("lost-peer"), self.rank)
        return LoadError([self._first(mine) or mine])

    def _first(self, finding: Finding) -> Finding | None:
        """Leave `finding` in the store unless one is there, and return the one that is there; None where there is no store."""
        if self.rank is None:
            return None
        text = json.dumps(dataclasses.asdict(finding))
        try:
            store = dist.distributed_c10d._get_default_store()
            return Finding(**json.loads(store.compare_set(self._key, "", text)))
        except (RuntimeError, ValueError, TypeError):  # the rank that kept the store is the one that died
            return None


@functools.cache
def _group() -> Any:
    """A group of all ranks over gloo, which notices at once that a rank died; None for the default one where it is such."""
    return None if str(dist.get_backend()) == "gloo" else dist.new_group(backend="gloo")
