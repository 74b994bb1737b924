"""A checkpoint that the machine cannot hold is refused before anything is loaded, with the number that is needed."""

import json
import re
from pathlib import Path

import pytest

from ..smoke.conftest import ROOT
from .conftest import Inside

# Parameters of Qwen2.5-VL-3B-Instruct and -7B-Instruct, as their pages on the hub say.
B3, B7 = 3_754_622_976, 8_292_166_656
MIB_24, MIB_80 = 24_576, 81_920


def checkpoint(folder: Path, parameters: int) -> Path:
    """Write a checkpoint of that size, whose bytes are a hole in the file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.json"):
        (folder / name).write_text("{}")
    tensor = {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * parameters)
    return folder


def refused(inside: Inside, parameters: int, devices: Path, *options: str, **given: object) -> str:
    """Start a smoke run, which must end with one line and exit code 2 before a rank starts; return the line."""
    name, folder = inside.name, devices.with_name("checkpoint")
    report = folder.with_name("report")
    command = ["-m", "smoke_tests", "--environment", name, "--stack", f"environments/{name}/stack.toml"]
    command += ["--lock", str(ROOT / "lockfiles" / name), "--report", str(report), *options]
    environ = {"SMOKEHOUSE_DEV": devices, "SMOKEHOUSE_PROC": devices, "PYTHONPATH": ROOT / "src"}
    ended = inside.run(*command, "--checkpoint", str(checkpoint(folder, parameters)), code=2, **environ, **given)
    assert ended.stderr.count("\n") == 1, ended.stderr
    left = [path.name for path in report.rglob("*")] if report.exists() else []
    assert {*left} <= {".lock", "logs"}, left  # and nothing in them
    return ended.stderr.strip()


@pytest.mark.parametrize(("parameters", "memory"), [(B3, MIB_24), (B7, MIB_80)], ids=["3B", "7B"])
def test_one_gpu_cannot_hold_the_optimizer(inside: Inside, devices: Path, parameters: int, memory: int) -> None:
    said = refused(inside, parameters, devices, gpus=1, memory_mib=memory)
    found = re.fullmatch(
        r"GPU 0 \(Stub GPU\): training under ZeRO-[23] on nccl x1 requires about ([\d.]+) GiB, found ([\d.]+) GiB free; "
        r"use more or larger GPUs, --zero 3, or a smaller checkpoint",
        said,
    )
    assert found, said
    assert float(found[1]) == pytest.approx(20 * parameters / 2**30, rel=0.05)
    assert float(found[2]) == pytest.approx(memory / 1024, abs=0.1)


def test_a_slice_of_a_gpu_has_less_memory_than_the_gpu(inside: Inside, devices: Path) -> None:
    said = refused(inside, B3, devices, "--zero", "3", gpus=8, mig=1, memory_mib=10 * MIB_80, slice_mib=9856)
    assert re.search(
        r"GPU 0 \(Stub GPU\): training under ZeRO-3 on nccl x1 requires about [\d.]+ GiB, found 9\.6 GiB free", said
    )


def test_a_cpu_would_hold_it_on_each_rank(inside: Inside, devices: Path) -> None:
    """No test machine has that much memory."""
    said = refused(inside, B3, devices, "--device", "cpu", gpus=0)
    wanted = r"--nproc 2: training on 2 ranks requires about ([\d.]+) GiB of memory \(([\d.]+) GiB each\), found .+"
    found = re.fullmatch(wanted, said)
    assert found, said
    assert float(found[1]) == pytest.approx(2 * 20 * B3 / 2**30, rel=0.05)
    assert float(found[2]) == pytest.approx(float(found[1]) / 2, abs=0.1)


def test_eight_gpus_can_and_the_host_cannot(inside: Inside, devices: Path) -> None:
    # No test machine has that much memory; on one that has, the run would begin, and fail for want of a real model.
    said = refused(inside, B7, devices, gpus=8, memory_mib=MIB_80)
    found = re.fullmatch(
        r"--nproc 8: (loading on 8 ranks under ZeRO-2|consolidating a checkpoint) requires about ([\d.]+) GiB of memory, "
        r"found [\d.]+ GiB free; use a larger machine or a smaller checkpoint",
        said,
    )
    assert found, said
    assert float(found[2]) == pytest.approx((16 * B7) / 2**30, rel=0.1)
