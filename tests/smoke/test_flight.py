"""Torch's flight recorder: its dumps are requested from every rank, read as plain data, and say which collective hangs."""

import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.ranks import flight, recorder
from smoke_tests.ranks.recorder import Entry

from .conftest import Starter


def record(number: int, name: str, state: str, **more: Any) -> dict[str, Any]:
    """Return a record as torch 2.6 and later dump it."""
    return {
        "process_group": ("0", "default_pg"),
        "collective_seq_id": number,
        "profiling_name": f"nccl:{name}",
        "input_sizes": [[4, 2]],
        "input_dtypes": ["BFloat16"],
        "state": state,
        "retired": state == "completed",
        "is_p2p": False,
        **more,
    }


def dumped(*records: dict[str, Any]) -> bytes:
    """Return a dump of a world of two."""
    return pickle.dumps({"version": "2.4", "pg_config": {"0": {"name": "0", "ranks": "[0, 1]"}}, "entries": [*records]})


@contextmanager
def ranks(prefix: Path, dumps: dict[int, bytes]) -> Iterator[None]:
    """Answer as NCCL's monitors do: read a pipe, and write a dump once somebody writes to it."""
    reading, threads = [], []
    for rank, dump in dumps.items():
        pipe = f"{prefix}{rank}.pipe"
        os.mkfifo(pipe)
        reading.append(os.open(pipe, os.O_RDWR))

        def answer(descriptor: int = reading[-1], file: Path = Path(f"{prefix}{rank}"), content: bytes = dump) -> None:
            os.read(descriptor, 16)
            file.write_bytes(content[:7])  # a dump that is still being written
            file.write_bytes(content)

        threads.append(threading.Thread(target=answer, daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        for descriptor in reading:
            os.close(descriptor)


def test_hang_names_the_collective_that_a_rank_has_not_reached(tmp_path: Path) -> None:
    both = record(7, "_all_gather_base", "completed")
    dumps = {0: dumped(both, record(8, "all_reduce", "started")), 1: dumped(both)}
    with ranks(tmp_path / "zero3-flight-", dumps):
        found = flight.collect(tmp_path / "zero3-flight-", [0, 1])
    assert recorder.explain(found) == (
        "all_reduce of bfloat16[4, 2], number 8 of the default group: arrived rank 0; not arrived rank 1 "
        "(last: number 7, all_gather_into_tensor of bfloat16[4, 2])"
    )


def test_collective_that_never_ends_on_the_gpu(tmp_path: Path) -> None:
    """The host has gone on: only the streams say it."""
    dumps = {rank: dumped(record(1, "all_reduce", "started"), record(2, "broadcast", "scheduled")) for rank in (0, 1)}
    with ranks(tmp_path / "f", dumps):
        found = flight.collect(tmp_path / "f", [0, 1])
    assert [entry.state for entry in found[0]] == ["w", "q"]
    assert recorder.explain(found).startswith("all_reduce of bfloat16[4, 2], number 1 of the default group: arrived ranks 0, 1")


def test_nothing_is_said_unless_all_ranks_answer(tmp_path: Path) -> None:
    """A rank that is silent may have arrived."""
    assert flight.collect(tmp_path / "none", [0, 1]) == {}
    with ranks(tmp_path / "one", {0: dumped(record(1, "all_reduce", "started"))}):
        assert flight.collect(tmp_path / "one", [0, 1]) == {}
    with ranks(tmp_path / "half", {0: dumped(), 1: dumped()[:20]}):
        assert flight.collect(tmp_path / "half", [0, 1], patience=0.3) == {}


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        """Return the command."""
        return os.system, ("touch evil",)


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps(Evil()), pickle.dumps([1]), pickle.dumps({"entries": 3})])
def test_dump_that_is_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump").write_bytes(content)
    with pytest.raises(ValueError, match="expected a dump of torch's flight recorder"):
        flight.read(tmp_path / "dump", 2)
    assert not (tmp_path / "evil").exists()


def test_variables_have_the_names_of_the_torch() -> None:
    old, new = (flight.variables(Path("/work/x-"), renamed=renamed) for renamed in (False, True))
    assert "TORCH_NCCL_TRACE_BUFFER_SIZE" in old
    assert "TORCH_FR_BUFFER_SIZE" in new
    # Torch warns of a name that it has renamed, in every rank.
    assert not {"TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"} & new.keys()


DUMPED = """
import os, pathlib, sys
os.environ["TORCH_FR_BUFFER_SIZE"] = "100"
import torch, torch.distributed as dist
from torch._C import _distributed_c10d as c10d

folder = pathlib.Path(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
ones = torch.ones(2, 3)
dist.all_reduce(ones)
dist.broadcast(ones.to(torch.bfloat16), 0)
dist.barrier()
(folder / "dump").write_bytes(c10d._dump_fr_trace())
"""


def test_dump_of_torch_is_read(latest: Starter, tmp_path: Path) -> None:
    """Newer torch records gloo's collectives, too, in the format of NCCL's."""
    latest.inside("-c", DUMPED, str(tmp_path))
    first, second, *_ = flight.read(tmp_path / "dump", 1)
    assert first == Entry("l", 1, "the default group", (0,), "all_reduce", "float32[2, 3]")
    assert (second.number, second.kind, second.tensor) == (2, "broadcast", "bfloat16[2, 3]")


EMPTY = """
import pathlib, sys
from torch._C import _distributed_c10d as c10d
pathlib.Path(sys.argv[1]).write_bytes(c10d._dump_nccl_trace())
print(hasattr(c10d, "_dump_fr_trace"))
"""


def test_dump_of_older_torch_is_read(lasting: Starter, tmp_path: Path) -> None:
    assert lasting.inside("-c", EMPTY, str(tmp_path / "dump")).splitlines()[-1] == "False"
    assert flight.read(tmp_path / "dump", 1) == []
