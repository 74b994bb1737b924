"""A checkpoint that the machine cannot hold is refused before anything is loaded, with the number that is needed."""

import json
import re
from pathlib import Path

import pytest

from ..smoke.conftest import ROOT
from .conftest import Inside

B7 = 8_292_166_656  # parameters of Qwen2.5-VL-7B-Instruct, as its page on the hub says
MIB_80 = 81_920


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of that size, whose bytes are a hole in the file."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.json"):
        (folder / name).write_text("{}")
    tensor = {"dtype": "BF16", "shape": [B7], "data_offsets": [0, 2 * B7]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * B7)
    return folder


def refused(inside: Inside, checkpoint: Path, devices: Path, *options: str, **given: object) -> str:
    """Start a smoke run, which must end with one line and exit code 2; return the line."""
    name = inside.name
    command = ["-m", "smoke_tests", "--environment", name, "--stack", f"environments/{name}/stack.toml"]
    command += ["--lock", str(ROOT / "lockfiles" / name), "--report", str(checkpoint.with_name("report")), *options]
    environ = {"SMOKEHOUSE_DEV": devices, "SMOKEHOUSE_PROC": devices, "PYTHONPATH": ROOT / "src"}
    ended = inside.run(*command, "--checkpoint", str(checkpoint), code=2, **environ, **given)
    return ended.stderr.strip()


def test_one_gpu_cannot_hold_the_optimizer(inside: Inside, checkpoint: Path, devices: Path) -> None:
    said = refused(inside, checkpoint, devices, gpus=1, memory_mib=MIB_80)
    found = re.fullmatch(
        r"GPU 0 \(Stub GPU\): training under ZeRO-[23] on nccl x1 requires about ([\d.]+) GiB, found ([\d.]+) GiB free; "
        r"use more or larger GPUs, --zero 3, or a smaller checkpoint",
        said,
    )
    assert found, said
    assert float(found[1]) == pytest.approx(20 * B7 / 2**30, rel=0.05)
    assert float(found[2]) == pytest.approx(80, abs=0.1)


def test_eight_gpus_can_and_the_host_cannot(inside: Inside, checkpoint: Path, devices: Path) -> None:
    # No test machine has that much memory; on one that has, the run would begin, and fail for want of a real model.
    said = refused(inside, checkpoint, devices, gpus=8, memory_mib=MIB_80)
    found = re.fullmatch(
        r"--nproc 8: (loading on 8 ranks under ZeRO-2|consolidating a checkpoint) requires about ([\d.]+) GiB of memory, "
        r"found [\d.]+ GiB free; use a larger machine or a smaller checkpoint",
        said,
    )
    assert found, said
    assert float(found[2]) == pytest.approx((16 * B7) / 2**30, rel=0.1)
