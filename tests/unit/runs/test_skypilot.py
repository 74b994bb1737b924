"""SkyPilot's task file: valid by SkyPilot's own schemas, and its commands start what the nodes of a job need."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "skypilot"
DATA = ROOT / "tests" / "data" / "skypilot"


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """Return the task."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / "train.yaml").read_text())
    return found


def problems(task: dict[str, Any]) -> list[str]:
    """Return what SkyPilot refuses of a task."""
    validators = {name: Draft202012Validator(json.loads((DATA / f"{name}.json").read_text())) for name in ("task", "resources")}
    found = [*validators["task"].iter_errors(task), *validators["resources"].iter_errors(task["resources"])]
    return [error.message for error in found]


def test_the_task_follows_the_schemas(task: dict[str, Any]) -> None:
    assert problems(task) == []
    # A control: the schemas refuse something.
    assert len(problems(task | {"nodes": 2, "resources": task["resources"] | {"gpus": 8}})) == 2


def test_the_image_is_pinned_and_files_exist(task: dict[str, Any]) -> None:
    assert "@sha256:" in task["resources"]["image_id"]
    assert task["resources"]["image_id"].removeprefix("docker:") in (FOLDER / "Dockerfile").read_text()
    assert all((ROOT / "cluster" / place).is_file() for place in task["file_mounts"].values())


@pytest.mark.parametrize("rank", [0, 1])
def test_its_commands_start_the_launcher_and_the_preflight(task: dict[str, Any], tmp_path: Path, rank: int) -> None:
    """As SkyPilot runs them: with bash, and these variables; programs that print their arguments stand for the image's."""
    for name in ("torchrun", "doctor"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environ = {
        "PATH": os.defpath,
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_SETUP_NUM_GPUS_PER_NODE": "8",
    }
    said = []
    for part in ("setup", "run"):
        script = task[part].replace("/opt/env/bin", str(tmp_path)).replace("/opt/smokehouse", str(tmp_path))
        ended = subprocess.run(["bash", "-euc", script], env=environ, capture_output=True, text=True, timeout=60, check=True)
        said.append(ended.stdout.strip())
    assert said == [
        "doctor --device cuda --gpus 8",
        f"torchrun --nnodes 2 --node-rank {rank} --nproc-per-node 8 --master-addr 10.0.0.4 --master-port 29500 /tmp/train.py",
    ]
