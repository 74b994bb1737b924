"""Train a linear model over all nodes for a few steps, to see that they meet before a real job does.

torchrun starts it once for each GPU, or for each rank on CPUs. Replace it by your own program: a TrainJob's `args` say which.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

# Shorter than NCCL's half hour: a node that is not there ends the job soon.
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=5))
rank, world_size = dist.get_rank(), dist.get_world_size()
if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 1).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(rank)).to(device)
targets = inputs.sum(dim=1, keepdim=True)
losses = []
for _ in range(20):
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(shown := loss.detach().clone())
    losses.append(shown.item() / world_size)
if rank == 0:
    print(f"{world_size} ranks on {os.environ['GROUP_WORLD_SIZE']} nodes: loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
dist.destroy_process_group()
