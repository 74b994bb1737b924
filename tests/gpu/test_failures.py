"""Failures that only a GPU shows: the text that a log has of each is in the libraries of an environment, and is recognised."""

import mmap
from pathlib import Path

import pytest

from smokehouse_loader import FAILURES, explain

from .conftest import Inside

NCCL, RUNTIME = "nvidia/nccl/lib/libnccl.so.2", "nvidia/cuda_runtime/lib/libcudart.so.12"
# Failure -> a line as public threads show it, the library that it comes from, and its part that is in there.
LINES = {
    "no-kernels-for-gpu": (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        RUNTIME,
        "no kernel image is available for execution on the device",
    ),
    "shared-memory-full": (
        "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, unhandled system "
        "error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5 Last error: Error while creating shared memory "
        "segment /dev/shm/nccl-Qh3A7x (size 7340384)",
        NCCL,
        "shared memory segment %s (size %ld)",
    ),
    "data-loader-shared-memory": (
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers "
        "are out of shared memory. Please try to raise your shared memory limit.",
        "torch/lib/libtorch_python.so",
        "It is possible that dataloader's workers are out of shared memory",
    ),
    "gpu-not-available": (
        "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        RUNTIME,
        "CUDA-capable device(s) is/are busy or unavailable",
    ),
    "duplicate-gpu": (
        "ncclInvalidUsage: Last error: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000",
        NCCL,
        "Duplicate GPU detected : rank %d and rank %d both on CUDA device",
    ),
    "nccl-no-interface": ("Last error: Bootstrap : no socket interface found", NCCL, "Bootstrap : no socket interface found"),
    "nccl-peer-to-peer": (
        "misc/ipcutils.cc: Cuda failure 'peer access is not supported between these two devices'",
        RUNTIME,
        "peer access is not supported between these two devices",
    ),
    "nccl-timeout": (
        "[rank1]:[E] [PG 0 (default_pg) Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=133, "
        "OpType=_ALLGATHER_BASE, NumelIn=1, NumelOut=8, Timeout(ms)=180000) ran for 180057 milliseconds before timing out.",
        "torch/lib/libtorch_cuda.so",
        "Watchdog caught collective operation timeout: ",
    ),
}


def test_each_has_a_line() -> None:
    assert LINES.keys() <= {failure.name for failure in FAILURES if failure.only_on_gpu}


@pytest.mark.parametrize("name", LINES)
def test_its_text_is_in_the_library_and_recognised(inside: Inside, name: str) -> None:
    line, library, text = LINES[name]
    found = explain(line)
    assert found[0].failure.name == name
    site = next(inside.python.parents[1].glob("lib/python3.*/site-packages"))
    with Path(site, library).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(text.encode()) >= 0
