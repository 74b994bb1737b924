"""Train under ZeRO-3 over nodes, go on from the last checkpoint, and save one when the job is to stop: train.py OPTIONS.

For train.sbatch. Every rank draws its samples from the step's number, so that a run that was interrupted has the losses of
one that was not. Replace `batch` by your data, and keep what its state is in the checkpoint (`client_state`).
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

on_gpus = torch.cuda.is_available()
if not on_gpus:  # for tests: without a GPU, triton raises, and DeepSpeed would compile an op for half a minute
    sys.modules["triton"] = None  # type: ignore[assignment]
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": os.environ["LOCAL_WORLD_SIZE"]}

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from deepspeed.utils.tensor_fragment import fragment_address  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402

from smokehouse_loader import load_model  # noqa: E402

# What torch 2.6 and later have to be told about DeepSpeed's checkpoints, before they load them.
enum = ZeroStageEnum.weights.__reduce_ex__(2)[0]
torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, enum, fragment_address])
if not on_gpus:
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False

parser = argparse.ArgumentParser(description="Train under ZeRO-3.")
parser.add_argument("--checkpoint", type=Path, required=True, help="Start with these weights.")
parser.add_argument("--output", type=Path, required=True, help="Save checkpoints here, on a disk that all nodes share.")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--save-every", type=int, default=10, help="Save after so many steps.")
parser.add_argument(
    "--hpz", type=int, default=1, help="Keep a second partition of the weights in each group of so many ranks (ZeRO++)."
)
parser.add_argument("--universal", action="store_true", help="Resume a universal checkpoint, of any number of ranks.")
parser.add_argument("--pause", type=float, default=0.0, help="Seconds between two steps, for tests.")
options = parser.parse_args()

stop = False


def note(*_: Any) -> None:
    """Take the signal that train.sbatch sends before the time limit."""
    global stop
    stop = True


signal.signal(signal.SIGUSR1, note)
deepspeed.init_distributed(dist_backend="nccl" if on_gpus else "gloo", auto_mpi_discovery=False)
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
config: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_param_persistence_threshold": 0,
        **({"zero_hpz_partition_size": options.hpz} if options.hpz > 1 else {}),
    },
    "bf16": {"enabled": on_gpus},
    "checkpoint": {"load_universal": options.universal},
}
live = HfDeepSpeedConfig(config)  # before the model, which is then loaded in parts
model = load_model(options.checkpoint, torch_dtype=torch.bfloat16 if on_gpus else torch.float32)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)


def batch(step: int) -> dict[str, torch.Tensor]:
    """Return this rank's sample of a step; the ranks of one step have different ones."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    tokens = torch.randint(10, 100, (1, 32), generator=generator)
    return {"input_ids": tokens.to(device), "attention_mask": torch.ones_like(tokens).to(device), "labels": tokens.to(device)}


def agreed() -> bool:
    """Whether any rank is to stop: they learn it at different moments, and have to stop after the same step."""
    told = stop or Path(os.environ.get("SIGNAL_FILE", "/nonexistent")).exists()
    flag = torch.tensor([float(told)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def save(step: int) -> None:
    """Save a checkpoint; DeepSpeed writes `latest` when all of it is on disk."""
    engine.save_checkpoint(str(options.output), tag=f"step{step}", client_state={"step": step})


step = 0
if (options.output / "latest").exists():
    _, state = engine.load_checkpoint(str(options.output), tag=None)
    step = state["step"]
    if rank == 0:
        print(f"resumed after step {step} on {world} ranks", flush=True)
while step < options.steps:
    loss = engine(**batch(step)).loss
    engine.backward(loss)
    engine.step()
    step += 1
    mean = loss.detach().float().clone()
    dist.all_reduce(mean)
    if rank == 0:
        with (options.output.parent / "losses.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": mean.item() / world, "ranks": world}) + "\n")
        print(f"step {step}: loss {mean.item() / world:.4f}", flush=True)
    time.sleep(options.pause)
    leave = agreed()
    if leave or step % options.save_every == 0 or step == options.steps:
        save(step)
    if leave:
        break
dist.barrier()
dist.destroy_process_group()
