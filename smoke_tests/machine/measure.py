"""`python -m smoke_tests.machine.measure`: print how fast each GPU multiplies matrices, and all of them reduce, as JSON.

It runs in a process of its own, because it starts CUDA.
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIZE = 8192  # rows and columns of the matrices: 1.1 TFLOP a product
_BYTES = 1 << 30  # that are reduced
_WARM_UP, _ROUNDS = 2, 8


def tflops(device: "torch.device", size: int = SIZE) -> float:
    """Return the rate of products of two `size` x `size` bf16 matrices on `device`."""
    import torch

    first, second = (torch.ones(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = _seconds(lambda: torch.mm(first, second), lambda: _wait([device]))
    return 2 * size**3 / seconds / 1e12


def all_reduce(count: int) -> float:
    """Return the bus bandwidth of an all-reduce over the first `count` GPUs in GB/s, all of them driven by this process.

    See: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    import torch

    devices = [torch.device("cuda", index) for index in range(count)]
    tensors = [torch.zeros(_BYTES // 2, dtype=torch.bfloat16, device=device) for device in devices]
    reduce: Callable[[Any], None] = torch.cuda.nccl.all_reduce
    seconds = _seconds(lambda: reduce(tensors), lambda: _wait(devices))
    return 2 * (count - 1) / count * _BYTES / seconds / 1e9


def _seconds(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    for _ in range(_WARM_UP):
        work()
    wait()
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    wait()
    return (time.perf_counter() - began) / _ROUNDS


def _wait(devices: "list[torch.device]") -> None:
    import torch

    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def main() -> None:
    """Measure all visible GPUs one after another, then together."""
    import torch

    count = torch._C._cuda_getDeviceCount()  # the other one counts all cards where CUDA gives one slice of MIG
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    cards = [(name, tflops(torch.device("cuda", index))) for index, name in enumerate(names)]
    print(json.dumps({"cards": cards, "all_reduce": all_reduce(count) if count > 1 else None}))


if __name__ == "__main__":
    main()
