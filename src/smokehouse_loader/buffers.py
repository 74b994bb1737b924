"""Load the persistent buffers of a model under ZeRO-3, which transformers before 5.6 does on rank 0 at most."""

from typing import Any

import torch

from smokehouse_loader import compare
from smokehouse_loader.checkpoint import Checkpoint
from smokehouse_loader.keys import Plan


def load(model: Any, checkpoint: Checkpoint, plan: Plan) -> None:
    """Copy the values of the file into the persistent buffers of a loaded model, on this rank.

    ZeRO-3 partitions parameters alone, so each rank has each buffer whole. Those on the meta device or of another shape stay as
    they are, and a verification reports them. Raises OSError if the checkpoint cannot be read.
    """
    stored = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in stored.items() if not isinstance(buffer, torch.nn.Parameter)}
    with compare.Reader(checkpoint) as reader, torch.no_grad():
        for name in sorted(buffers.keys() & plan.renamed.keys()):
            buffer, key = buffers[name], plan.renamed[name]
            if not buffer.is_meta and tuple(buffer.shape) == checkpoint.tensors[key].shape:
                buffer.copy_(reader.whole(key))
