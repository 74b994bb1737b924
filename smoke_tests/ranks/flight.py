"""What NCCL's streams have reached: torch's flight recorder, which every rank keeps and dumps when it is asked through a pipe.

The recorder of this package (`recorder`) sees what the host calls. With NCCL that only queues work, and torch's own record
says which collectives have started and completed on the GPU. The thread that dumps it is NCCL's monitor, so that a rank dumps
however its main thread hangs; one that is stopped does not.

See: torch's tutorial on the flight recorder, and DumpPipe in its ProcessGroupNCCL.hpp. The format of a dump is that of versions
2.4 (torch 2.6) to 2.10 (torch 2.10).
"""

import contextlib
import io
import os
import pickle
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoke_tests.ranks.recorder import LEFT, QUEUED, SLOTS, WAITING, Entry

PATIENCE = 3.0  # seconds for all ranks to dump; their monitors look at the pipe five times a second
_POLL = "200"  # milliseconds
_RECORDS = "2000"
_LARGEST = 64 * 2**20  # bytes of a dump
# torch's names of collectives and types -> those of torch.distributed and of `recorder`.
_KINDS = {
    "_all_gather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "all_reduce_barrier": "barrier",
    "all_to_all": "all_to_all_single",
}
_TYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


def variables(prefix: Path, *, renamed: bool) -> dict[str, str]:
    """Return the environment variables by which ranks dump to `prefix`; `renamed` is for torch that calls them TORCH_FR_."""
    return {
        "TORCH_FR_BUFFER_SIZE" if renamed else "TORCH_NCCL_TRACE_BUFFER_SIZE": _RECORDS,
        "TORCH_FR_DUMP_TEMP_FILE" if renamed else "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(prefix),
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(prefix),
        "TORCH_NCCL_COORD_CHECK_MILSEC": _POLL,
    }


def collect(prefix: Path, ranks: Sequence[int], patience: float = PATIENCE) -> dict[int, list[Entry]]:
    """Have ranks dump what they recorded, and return it; empty unless all of them do: who is silent may have arrived."""
    for rank in ranks:
        _dump_of(prefix, rank).unlink(missing_ok=True)
        if not _ask(prefix.with_name(f"{prefix.name}{rank}.pipe")):
            return {}
    deadline = time.monotonic() + patience
    found: dict[int, list[Entry]] = {}
    while len(found) < len(ranks):
        for rank in set(ranks) - found.keys():
            with contextlib.suppress(OSError, ValueError):  # not there yet, or still being written
                found[rank] = read(_dump_of(prefix, rank), len(ranks))
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)  # no call waits for a file with a limit
    return dict(sorted(found.items())) if len(found) == len(ranks) else {}


def _dump_of(prefix: Path, rank: int) -> Path:
    return prefix.with_name(f"{prefix.name}{rank}")


def _ask(pipe: Path) -> bool:
    """Write to a rank's pipe; whether somebody reads it."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no pipe, or no reader
        return False
    try:
        return os.write(descriptor, b"1\n") > 0
    except OSError:  # its reader has just gone
        return False
    finally:
        os.close(descriptor)


class _Data(pickle.Unpickler):
    """An unpickler of plain data: a dump has no classes."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"expected plain data, found {module_name}.{global_name}")


def read(dump: Path, world: int) -> list[Entry]:
    """Return the latest collectives in a rank's dump, in order. Raises OSError, ValueError for another or a partial file."""
    with dump.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{dump}: expected at most {_LARGEST} bytes")
    try:
        state = _Data(io.BytesIO(content)).load()
        groups = {str(name): _ranks(group.get("ranks", "")) for name, group in state["pg_config"].items()}
        records = [record for record in state["entries"] if not record.get("is_p2p")]
        return sorted(
            (_entry(record, groups, world) for record in records[-SLOTS:]), key=lambda entry: (entry.group, entry.number)
        )
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{dump}: expected a dump of torch's flight recorder, found {type(error).__name__}") from None


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d{1,9}", str(text))))


def _entry(record: dict[str, Any], groups: dict[str, tuple[int, ...]], world: int) -> Entry:
    name, description = map(str, record["process_group"])
    group = (
        "the default group" if description == "default_pg" else f"group {description if description != 'undefined' else name}"
    )
    done = record["state"] == "completed" or (record["retired"] and record["state"] == "scheduled")
    state = LEFT if done else WAITING if record["state"] == "started" else QUEUED
    kind = str(record["profiling_name"]).rpartition(":")[2]
    kind = _KINDS.get(kind, kind)
    members = groups.get(name) or groups.get("") or tuple(range(world))
    return Entry(state.decode(), int(record["collective_seq_id"]), group, members, kind, _tensor(record, kind))


def _tensor(record: dict[str, Any], kind: str) -> str:
    sizes, types = record["input_sizes"], record["input_dtypes"]
    if kind == "barrier" or not sizes or not types:
        return ""
    text = f"{_TYPES.get(types[0], str(types[0]).lower())}{[int(size) for size in sizes[0]]}"
    return f"{text} and {len(sizes) - 1} more" if len(sizes) > 1 else text
