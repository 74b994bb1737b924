"""Ranks agree where the default group is not gloo's, as on GPUs: over the store that they met in, without another group."""

from datetime import timedelta
from unittest.mock import patch

import lab
import torch

from smokehouse_loader.consensus import Consensus
from smokehouse_loader.errors import Finding, LoadError

# What `init_process_group` makes by default is of this kind; tensors of GPUs would go to NCCL.
BACKEND = "cpu:gloo,cuda:gloo"


def finding(rank: int) -> Finding:
    """Return a finding that names its rank."""
    return Finding("wrong-bits", f"layer.{rank}", "is wrong", "load again")


def agreed(rank: int, wrong: tuple[int, ...]) -> tuple[str, int]:
    """Return the error that a rank raises, empty for none, and how many groups there are."""
    said = ""
    assert str(torch.distributed.get_backend()) != "gloo"
    for _ in range(2):  # rounds and loads do not mix
        consensus = Consensus()
        consensus.agree([])
        try:
            consensus.agree([finding(rank)] if rank in wrong else [])
        except LoadError as error:
            said = str(error)
    return said, len(torch.distributed.distributed_c10d._world.pg_map)


def test_all_ranks_raise_the_same_error_or_none() -> None:
    assert lab.values(lab.ranks(agreed, (), world=3, backend=BACKEND)) == [("", 1)] * 3
    found = {said for said, _ in lab.values(lab.ranks(agreed, (0, 2), world=3, backend=BACKEND))}
    assert len(found) == 1
    [said] = found
    assert "layer.0" in said
    assert "1 more" in said or "layer.2" in said


def test_a_failure_that_a_rank_publishes_reaches_those_that_wait() -> None:
    def work(rank: int) -> str:
        consensus = Consensus()
        if rank == 1:
            return str(consensus.failed(finding(rank)))
        try:
            consensus.agree([])
        except LoadError as error:
            return str(error)
        return ""

    said = lab.values(lab.ranks(work, world=3, backend=BACKEND))
    assert len({*said}) == 1
    assert "layer.1" in said[0]


def test_a_rank_that_never_answers_is_named() -> None:
    def work(rank: int) -> str:
        if rank == 1:
            return ""
        with patch.object(torch.distributed.distributed_c10d, "default_pg_timeout", timedelta(seconds=0.2)):
            try:
                Consensus().agree([])
            except LoadError as error:
                return str(error)
        return ""

    assert "timed out waiting for rank 1" in lab.values(lab.ranks(work, world=2, backend=BACKEND))[0]
