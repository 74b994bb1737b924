"""DeepSpeed is imported on a machine with GPUs and without nvcc."""

import json
from pathlib import Path

from .conftest import Inside

IMPORT = """
import json, torch, deepspeed
from deepspeed.accelerator import get_accelerator
print(json.dumps([torch.cuda.device_count(), get_accelerator().device_name(), deepspeed.__version__]))
"""
# What the answer replaces: no CUDA_HOME, which torch would find in /usr/local/cuda of some machines.
WITHOUT = "import torch.utils.cpp_extension as extension; extension.CUDA_HOME = None; import deepspeed"


def test_an_old_and_a_new_stack_import_deepspeed(each: Inside) -> None:
    found = json.loads(each.run("-c", IMPORT, gpus=2).stdout.splitlines()[-1])
    assert found[:2] == [2, "cuda"]


def test_without_the_answer_deepspeed_cannot_be_imported(inside: Inside) -> None:
    """The control: what the answer is for is still so."""
    ended = inside.run("-c", WITHOUT, code=1)
    assert "MissingCUDAException" in ended.stderr


def test_the_environment_brings_the_answer(inside: Inside, tmp_path: Path) -> None:
    """Python sets CUDA_HOME itself, where the one that is set has no nvcc; a toolkit of this machine comes first."""
    (tmp_path / "nvidiactl").touch()
    code = f"import os; print(os.environ['CUDA_HOME']); {IMPORT}"
    said = inside.run("-c", code, CUDA_HOME=tmp_path, SMOKEHOUSE_DEV=tmp_path).stdout.splitlines()
    assert said[0] in (str(inside.cuda_home), "/usr/local/cuda")
