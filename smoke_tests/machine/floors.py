"""Whether GPUs are as fast as others of their type: a measured matrix product and all-reduce beside floors.json."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoke_tests.machine.finding import Finding, ok

_TABLE = Path(__file__).with_name("floors.json")
_OF_NOMINAL, _OF_EXPECTED = 0.6, 0.9  # see floors.json
_DEADLINE = 60.0  # seconds; what a GPU that hangs costs, since a sound one takes about five
_DRAIN = "look for throttling and other programs on it; take the machine out of service if it stays slow"


@dataclass(frozen=True)
class Measured:
    """What was measured: name and TFLOPS of each GPU, and the bus bandwidth of an all-reduce over all in GB/s, None for one."""

    cards: tuple[tuple[str, float], ...]
    all_reduce: float | None


@dataclass(frozen=True)
class Floors:
    """The least that a sound GPU of a type reaches in TFLOPS, and machines of them in GB/s, by their number of GPUs."""

    gemm: float
    all_reduce: Mapping[int, float] = field(default_factory=dict)


def of(card: str) -> Floors | None:
    """Return the floors of a GPU by the name that NVML has for it, None for a type that floors.json does not know."""
    for machine in json.loads(_TABLE.read_text())["machines"]:
        if re.search(machine["card"], card):
            together = {int(count): rate * _OF_EXPECTED for count, rate in machine["all_reduce"].items()}
            return Floors(machine["gemm"] * _OF_NOMINAL, together)
    return None


def check() -> Iterator[Finding]:
    """Measure the GPUs of this machine in a process of its own, and yield those that are too slow."""
    command = [sys.executable, "-m", "smoke_tests.machine.measure"]
    place = Path(__file__).resolve().parents[2]
    fix = "run python -m smoke_tests.machine.measure to see its error"
    try:
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=_DEADLINE)
        found: dict[str, Any] = json.loads(ended.stdout)
        measured = Measured(tuple((str(name), float(rate)) for name, rate in found["cards"]), found["all_reduce"])
    except subprocess.TimeoutExpired:
        yield Finding("fail", f"matrix product and all-reduce did not end within {_DEADLINE:.0f} s", "speed", _DRAIN)
        return
    except (OSError, ValueError, KeyError, TypeError):
        said = (ended.stderr.strip() or "nothing").rpartition("\n")[2]
        yield Finding("fail", f"could not be measured ({said[:200]})", "speed", fix)
        return
    yield from judge(measured)


def judge(measured: Measured) -> Iterator[Finding]:
    """Yield the GPUs that are slower than their floor or than half of the fastest beside them, and a slow all-reduce."""
    slow = False
    fastest = max((rate for _, rate in measured.cards), default=0.0)
    for index, (name, rate) in enumerate(measured.cards):
        floors = of(name)
        least = max(floors.gemm if floors else 0.0, fastest / 2)
        if rate < least:
            slow = True
            what = f"matrix product of {rate:.0f} TFLOPS, expected {least:.0f} or more"
            yield Finding("fail", what, f"GPU {index} ({name})", _DRAIN)
    known = of(measured.cards[0][0]) if measured.cards else None
    expected = known.all_reduce.get(len(measured.cards)) if known else None
    if measured.all_reduce is not None and expected and measured.all_reduce < expected:
        slow = True
        what = f"all-reduce of {measured.all_reduce:.0f} GB/s over {len(measured.cards)} GPUs, expected {expected:.0f} or more"
        yield Finding("fail", what, "NCCL", "check NVLink (nvidia-smi nvlink -s) and nvidia-fabricmanager")
    if not slow:
        together = "" if measured.all_reduce is None else f", all-reduce {measured.all_reduce:.0f} GB/s"
        unknown = "" if known else "; no floor is known for this type"
        yield ok("speed", f"matrix product {fastest:.0f} TFLOPS{together}{unknown}")
