"""Measure what a cell of a compatibility matrix costs: against its two smoke runs, by the number of cells, and on disk.

A first cell, which is not counted, brings the wheels into uv's cache. Then the same cells are measured in folders of their own,
and the smoke test is run for each ZeRO stage by itself in the environment of the last one.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import size
from smokehouse.matrix import grid
from smokehouse.matrix.cell import ENVIRONMENT, ONLY, Run, measure
from smokehouse.programs.process import run
from smokehouse.runs import here
from smokehouse.runs.local import place_of_smoke_test

DEADLINE = 1800.0  # seconds
MOST = 1.2  # times its two smoke runs, that a cell may take


def smoke(checkout: Checkout, family: str, environment: Path, stage: int, report: Path) -> float:
    """Return the wall time of the checks of a cell in an environment, for one ZeRO stage."""
    began = time.perf_counter()
    command: list[str | Path] = [environment / "bin" / "python", "-m", "smoke_tests", f"--here={family}", "--device", "cpu"]
    command += ["--report", str(report), "--only", ONLY, "--zero", str(stage)]
    ended = run(command, deadline=DEADLINE, environ=here.variables_in(environment), cwd=place_of_smoke_test(checkout))
    if ended.code not in (0, 1):
        raise SystemExit(f"{environment}: the smoke test ended with {ended.code}: {ended.stderr}")
    return time.perf_counter() - began


def all_bytes(folder: Path) -> int:
    """Return what a folder would have on disk if it shared nothing."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def main() -> int:
    """Measure and print Markdown tables; return 1 where a cell takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-vl", help="Take cells of this grid.")
    parser.add_argument("--cells", type=int, default=3, help="Measure this many.")
    options = parser.parse_args()
    checkout = Checkout.find(Path.cwd())
    read = grid.read(checkout, options.model)
    cells, how = read.cells[: options.cells], Run("cpu", DEADLINE)
    build = checkout.build / "benchmark"
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as name:
        folder = Path(name)
        measure(checkout, read.definition, cells[0], folder / "first", how)
        began, rows, own, took = time.perf_counter(), [], 0, 0.0
        for number, versions in enumerate(cells, 1):
            before = time.perf_counter()
            own += measure(checkout, read.definition, versions, folder / str(number), how).disk_bytes
            took, total = time.perf_counter() - before, time.perf_counter() - began
            whole = sum(all_bytes(folder / str(one) / ENVIRONMENT) for one in range(1, number + 1))
            rows.append(f"| {number} | {total:.1f} | {total / number:.1f} | {size(own)} | {size(whole)} |")
        last, family = folder / str(len(cells)) / ENVIRONMENT, read.definition.family
        two, three = (smoke(checkout, family, last, stage, folder / f"zero{stage}") for stage in (2, 3))
    ratio = took / (two + three)
    print(f"{len(os.sched_getaffinity(0))} CPUs, {read.definition.model}\n")
    print("| cells | seconds | seconds a cell | disk | without hard links |\n|---:|---:|---:|---:|---:|")
    print("\n".join(rows))
    print(
        f"\n{cells[-1].words}: {took:.1f} s with its installation; smoke test of ZeRO-2 {two:.1f} s, of ZeRO-3 {three:.1f} s:"
    )
    print(f"{ratio:.2f} times its two smoke runs (at most {MOST})")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
