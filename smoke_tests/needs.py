"""What a run needs for a model of some size: memory of devices and host, disk, and time. Imports no torch.

P is the number of parameters, N the number of ranks. Bytes per parameter are those of mixed precision with Adam (weights and
gradients in bf16 2 + 2, fp32 masters, their gradients and two moments 4 + 4 + 8), as in the ZeRO paper, section 3.1:
https://arxiv.org/abs/1910.02054. On a CPU everything is fp32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from smoke_tests.legs import Leg

# Above this size references come from forward passes and the gradients of two probes, which need the weights alone: a whole
# optimizer needs 20 bytes per parameter on one device, 154 GiB for 8.3 billion of them, however many devices there are.
SMALL_MODEL = 100_000_000
# Memory of one rank's interpreter with torch, transformers and deepspeed; measured 0.6 GiB, mostly shared by forked ranks.
HOST_BASE = 700 * 2**20
# A CUDA context with its kernels, NCCL's buffers, DeepSpeed's buckets and the activations of one short sample.
DEVICE_BASE = 2 * 2**30
# fp32 training on a CPU: weight, gradient, two moments, and the reduction buffer.
CPU_TRAINING = 20
# The plain run of a small model in bf16: weight, gradient, fp32 master with gradient and moments.
PLAIN_TRAINING = 20
BF16, FP32 = 2, 4
# Written per stage: engine checkpoint (weights, masters, moments) and two consolidations.
DISK_PER_PARAMETER = 28
SYNTHETIC_DISK = 200 * 2**20
# A consolidation reads the whole engine checkpoint into the memory of one process: masters and moments, with a copy.
CONSOLIDATION = 16
# Bytes per second at which a checkpoint is read or written at worst: a busy network file system.
SLOWEST_STORAGE = 200e6
DEADLINE = 120.0  # seconds that a check of a small model may take
# Seconds that the compilation of one of DeepSpeed's ops may take, whatever the model. Measured with torch 2.10.0: 65 s of one
# core's time, and 100 s and more where other processes want the same cores.
COMPILATION = 600.0


@dataclass(frozen=True)
class Needs:
    """The most that a run needs at one time, in bytes, and the phase that needs it."""

    device: int  # on each device; 0 on a CPU
    device_phase: str
    host: int  # of all processes together
    host_phase: str


def is_large(parameters: Iterable[Any]) -> bool:
    """Return whether a model with these parameters, or partitions of them, is too large to be trained by one process."""
    return bool(sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters) >= SMALL_MODEL)


def needs(parameters: int, leg: Leg, stages: tuple[int, ...]) -> Needs:
    """Return the estimate for a model of `parameters` on `leg` under each of the ZeRO `stages`."""
    ranks, here = leg.world_size, leg.world_size // leg.nodes  # the host is each of the nodes
    host = here * HOST_BASE
    if not leg.gpus:
        return Needs(0, "", host + here * CPU_TRAINING * parameters, f"training on {here} ranks")
    sharing = -(-ranks // leg.gpus)  # ranks on one device
    on_device = {"the plain run": DEVICE_BASE + (PLAIN_TRAINING if parameters < SMALL_MODEL else BF16) * parameters}
    for stage in stages:
        each = DEVICE_BASE + training_bytes(parameters, ranks, stage)
        on_device[f"training under ZeRO-{stage} on {leg.name}"] = sharing * each
    # Under ZeRO-2 every rank loads the whole model before it goes to its device; under ZeRO-3 one shard at a time.
    loading = {f"loading on {here} ranks under ZeRO-2": here * BF16 * parameters} if 2 in stages else {}
    on_host = loading | {"consolidating a checkpoint": CONSOLIDATION * parameters}
    device_phase, host_phase = max(on_device, key=on_device.__getitem__), max(on_host, key=on_host.__getitem__)
    return Needs(on_device[device_phase], device_phase, host + on_host[host_phase], host_phase)


def training_bytes(parameters: int, ranks: int, stage: int) -> int:
    """Return the bytes of model states on each device: bf16 weights whole under ZeRO-2, everything else by rank."""
    whole = BF16 if stage == 2 else 0
    return whole * parameters + (PLAIN_TRAINING - whole) * parameters // ranks


def disk_bytes(parameters: int, runs: int) -> int:
    """Return the bytes that a run writes, which repeats its ZeRO jobs `runs` times: once for each stage of each leg."""
    return SYNTHETIC_DISK + runs * DISK_PER_PARAMETER * parameters


def deadline(parameters: int) -> float:
    """Return the seconds that one check may take: a constant, and the time to move the largest file that a check moves."""
    return DEADLINE + CONSOLIDATION * parameters / SLOWEST_STORAGE
