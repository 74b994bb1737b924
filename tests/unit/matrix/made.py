"""A checkout whose matrix has a cell of each verdict, and cells that were not run."""

from pathlib import Path
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.matrix import grid, store
from smokehouse.matrix.cell import empty
from smokehouse.matrix.model import DECISIVE, Cell, Check, Stage, Versions
from smokehouse.matrix.model import STAGES as STAGES_OF_ZERO

HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'
GRID = """\
model = "Tiny-VL"
family = "qwen2_5_vl"
python = "3.11"
platform = "x86_64-manylinux_2_28"
cutoff = 2025-03-15
packages = []

[[grid]]
torch = ["2.6.0"]
transformers = ["4.9.0", "4.49.0"]
deepspeed = ["0.15.4", "0.16.9", "0.18.9", "0.19.8"]
"""
WORKS = Stage(verdict="works")
KNOWN = Stage(verdict="fails", error="weights: rank 0: 3 tensors wrong", failure="gloo-race")
# transformers, deepspeed -> ZeRO-2, ZeRO-3
STAGES = {
    ("4.9.0", "0.15.4"): (WORKS, WORKS),
    ("4.9.0", "0.16.9"): (Stage(verdict="not installable", error="no solution"),) * 2,
    ("4.49.0", "0.15.4"): (WORKS, KNOWN),
    ("4.49.0", "0.16.9"): (Stage(verdict="fails", error=f"train: {HOSTILE}"), Stage(verdict="crashes", error="signal 9")),
    ("4.49.0", "0.18.9"): (WORKS, Stage(verdict="hangs", error="train: rank 0 hangs in zero3 / train")),
}


def cell(transformers: str, deepspeed: str, stages: tuple[Stage, ...], **changes: Any) -> Cell:
    """Return a cell of torch 2.6.0 whose ZeRO stages do this."""
    versions = Versions(torch="2.6.0", transformers=transformers, deepspeed=deepspeed)
    works = [number for number, stage in zip(STAGES_OF_ZERO, stages, strict=True) if stage.verdict == "works"]
    passed = [
        (name, number) for name in DECISIVE for number in STAGES_OF_ZERO if number in works or (name, number) == ("load", 3)
    ]
    checks = [Check(name=name, zero_stage=n, verdict="passed", detail="45 parameters", seconds=1.5) for name, n in passed]
    lock = {"torch": "2.6.0", "transformers": transformers, "deepspeed": deepspeed}
    made = {"zero2": stages[0], "zero3": stages[1], "checks": checks, "lock": lock, "backend": "gloo", "ranks": 2}
    return empty(versions, "3.11", "cpu").model_copy(update=made | {"precision": "fp32"} | changes)


def make(root: Path) -> Checkout:
    """Return a checkout in the empty folder `root` with five measured cells of eight."""
    for folder in ("environments", "matrix"):
        (root / folder).mkdir(parents=True)
    (root / "matrix" / "tiny-vl.toml").write_text(GRID)
    checkout = Checkout(root)
    read = grid.read(checkout, "tiny-vl")
    for (transformers, deepspeed), stages in STAGES.items():
        store.append(checkout, read, cell(transformers, deepspeed, stages))
    return checkout
