"""Agreement between ranks: either every rank raises the same error, or none does."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from smokehouse_loader.errors import Finding, LoadError, first_line
from smokehouse_loader.failures import fix_for

_attempts = 0


def rank() -> int | None:
    """Return this process's rank, None outside of a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else None


class Consensus:
    """The agreement of all ranks on one load. Every rank has to create it, in the same order of loads."""

    def __init__(self) -> None:
        """Take the number of this load, which is the same on every rank because all ranks load together."""
        global _attempts
        _attempts += 1
        self._key = f"smokehouse_loader/{_attempts}"
        self.rank = rank()
        self._group = _group() if self.rank is not None else None

    def agree(self, findings: Sequence[Finding]) -> None:
        """Exchange `findings`; raise LoadError with those of all ranks unless there are none.

        If a rank has died, the others raise the failure that it published, or else report it as lost.
        """
        own = tuple(finding.on(self.rank) for finding in findings)
        if self.rank is None:
            if own:
                raise LoadError(own)
            return
        gathered: list[Any] = [None] * dist.get_world_size()
        try:
            dist.all_gather_object(gathered, own, group=self._group)
        except RuntimeError as closed:
            raise self.lost(closed) from closed
        if found := [finding for of_rank in gathered for finding in of_rank]:
            raise LoadError(found)

    def failed(self, finding: Finding) -> LoadError:
        """Publish a failure in the middle of the load, where other ranks may wait in a collective, and return the error.

        The finding is left in the store of the process group, where the others read it once they lose this rank; the first
        rank to publish wins.
        """
        return LoadError([self._publish(finding.on(self.rank))])

    def lost(self, error: Exception) -> LoadError:
        """Return the error of a rank that lost its connection to another one."""
        what = f"lost the connection to another rank: {first_line(error)}"
        return LoadError([self._publish(Finding("lost-peer", "torch.distributed", what, fix_for("lost-peer"), self.rank))])

    def _publish(self, finding: Finding) -> Finding:
        """Put `finding` into the store unless it has one, and return the one it has; `finding` if no store is reachable."""
        if self.rank is None:
            return finding
        text = json.dumps(dataclasses.asdict(finding))
        try:
            store = dist.distributed_c10d._get_default_store()
            return Finding(**json.loads(store.compare_set(self._key, "", text)))
        except (RuntimeError, ValueError, TypeError):  # the rank that hosts the store is the one that died
            return finding


@functools.cache
def _group() -> Any:
    """Return a gloo group of all ranks, which detects a dead rank at once; None for the default group if that is gloo."""
    return None if str(dist.get_backend()) == "gloo" else dist.new_group(backend="gloo")
