"""What docs/cluster/slurm.md shows is what Slurm takes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.smoke.conftest import NAME, python

from .slurm_cluster import Cluster

PAGE = Path(__file__).parents[2] / "docs" / "cluster" / "slurm.md"
SUBMITTED = re.findall(r"^    (sbatch .*)$", PAGE.read_text(), re.MULTILINE)
VERBS = re.findall(r"^    nox -s ((?:smoke|doctor) -- .*)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", SUBMITTED)
def test_command_is_accepted(root: Path, slurm: Cluster, line: str) -> None:
    """By a cluster with eight GPUs a node, which would start it."""
    program, *options = shlex.split(line)
    command = [program, "--test-only", *options]
    ended = subprocess.run(command, cwd=root, env=slurm.environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Job \d+ to start at .* on nodes n", ended.stderr)


@pytest.mark.parametrize("line", VERBS)
def test_verb_is_accepted(root: Path, slurm: Cluster, line: str) -> None:
    """All of it but the job, which is printed."""
    verb, _, name, *options = shlex.split(line.replace("/shared/envs/qwen2.5-vl", str(python(root, NAME).parents[1])))
    options = [*options[:-1], f"{options[-1]} --dry-run"] if verb == "doctor" else [*options, "--dry-run"]
    command = [sys.executable, "-m", "smokehouse", verb, name, *options]
    environ = slurm.environ | {"PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("srun ")


def test_page_has_commands() -> None:
    assert (len(SUBMITTED), len(VERBS)) == (4, 4)


def test_gpus_of_a_node_are_its_ranks(root: Path, slurm: Cluster, tmp_path: Path, prefix: Path) -> None:
    torchrun = prefix / "bin" / "torchrun"
    torchrun.write_text('#!/bin/bash\necho "torchrun $*"\necho "compiles in $TRITON_CACHE_DIR and $TORCH_EXTENSIONS_DIR"\n')
    variables = {"PREFIX": str(prefix), "PREFLIGHT": "none", "NODE_CACHE": str(tmp_path)}
    command = [
        "sbatch",
        "--wait",
        "--nodes=2",
        "--gpus-per-node=8",
        "--time=1",
        str(root / "cluster/slurm/train.sbatch"),
        "x.py",
        "a b",
    ]
    ended = subprocess.run(
        command, cwd=tmp_path, env=slurm.environ | variables, capture_output=True, text=True, timeout=120, check=False
    )
    [log] = tmp_path.glob("slurm-*.out")
    assert ended.returncode == 0, log.read_text()
    said = sorted(line for line in log.read_text().splitlines() if "torchrun" in line)
    assert len(said) == 2
    for node, line in enumerate(said):
        assert "--nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d" in line
        assert f"is_host={1 - node}," in line
        assert line.endswith("--max-restarts=0 x.py a b")
    own = re.escape(f"{tmp_path}/smokehouse-0")
    assert (
        len(re.findall(rf"^\d: compiles in {own}/triton and {own}/torch_extensions/\d+$", log.read_text(), re.MULTILINE)) == 2
    )
