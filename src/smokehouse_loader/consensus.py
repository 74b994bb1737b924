"""Agreement between ranks: either every rank raises the same error, or none does."""

import dataclasses
import json
import time
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
        self._rounds = 0
        self.rank = rank()

    def agree(self, findings: Sequence[Finding]) -> None:
        """Exchange `findings`; raise LoadError with those of all ranks unless there are none.

        If a rank has died, the others raise the failure that it published, or else report it as lost.
        """
        own = tuple(finding.on(self.rank) for finding in findings)
        if self.rank is None:
            if own:
                raise LoadError(own)
            return
        try:
            gathered = _gathered(own) if str(dist.get_backend()) == "gloo" else self._stored(self.rank, own)
        except RuntimeError as closed:
            raise self.lost(closed) from closed
        if found := [finding for of_rank in gathered for finding in of_rank]:
            raise LoadError(found)

    def _stored(self, own_rank: int, own: tuple[Finding, ...]) -> list[tuple[Finding, ...]]:
        """Exchange findings through the store that the process group met in.

        Raises RuntimeError where a rank does not answer in the time that a collective may take, or has published a failure.
        A gloo group beside NCCL would have to find a network of its own: by default it looks up this machine's name, which is
        that of the loopback on many clusters. It would notice a dead rank at once; torchrun ends the others anyway.
        """
        store = dist.distributed_c10d._get_default_store()
        self._rounds += 1
        keys = [f"{self._key}/{self._rounds}/{number}" for number in range(dist.get_world_size())]
        store.set(keys[own_rank], json.dumps([dataclasses.asdict(finding) for finding in own]))
        self._wait(store, keys)
        texts = store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]
        return [tuple(Finding(**content) for content in json.loads(text)) for text in texts]

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

    def _wait(self, store: Any, keys: list[str]) -> None:
        """Wait until the store has all `keys`. Raises RuntimeError."""
        pause, until = 0.01, time.monotonic() + dist.distributed_c10d.default_pg_timeout.total_seconds()
        while not store.check(keys):
            if store.check([self._key]):
                raise RuntimeError("another rank failed while it loaded")
            if time.monotonic() > until:
                missing = [key.rpartition("/")[2] for key in keys if not store.check([key])]
                raise RuntimeError(f"timed out waiting for rank {', '.join(missing)}")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)


def _gathered(own: tuple[Finding, ...]) -> list[tuple[Finding, ...]]:
    """Exchange findings in the default group, which is gloo's: it notices a dead rank at once."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered
