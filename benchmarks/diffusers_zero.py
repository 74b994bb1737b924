"""Measure what ZeRO can do with transformers of diffusers: load, weights, train, save. On CPUs, with gloo.

Started by torchrun in an environment that has diffusers, for example in qwen2.5-vl-latest:

    pip install --target DIR --no-deps diffusers importlib_metadata zipp
    PYTHONPATH=DIR torchrun --nproc-per-node 2 benchmarks/diffusers_zero.py

Each model is a small one of its class with random weights, saved by diffusers and read again. Rank 0 prints a Markdown table;
what goes wrong is a result, with its error.
"""

import copy
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))  # otherwise DeepSpeed starts numactl
import deepspeed
import diffusers
import torch
import torch.distributed as dist
from safetensors.torch import load_file

STAGES = (2, 3)
STEPS = 3
RATE = 1e-3
Tensors = dict[str, torch.Tensor]


def qwen_image() -> tuple[torch.nn.Module, Tensors]:
    """Return a small transformer of Qwen-Image-Edit, and an input of it."""
    sizes = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16}
    model = diffusers.QwenImageTransformer2DModel(in_channels=16, out_channels=4, axes_dims_rope=(4, 6, 6), **sizes)
    inputs = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.bool),
        "timestep": torch.tensor([0.5]),
    }
    return model, inputs | {"img_shapes": [[(1, 4, 4)]]}


def wan() -> tuple[torch.nn.Module, Tensors]:
    """Return a small transformer of Wan, and an input of it. diffusers has no class for the speech-to-video model itself."""
    sizes = {"num_layers": 2, "attention_head_dim": 12, "num_attention_heads": 2, "text_dim": 16, "ffn_dim": 32, "freq_dim": 16}
    model = diffusers.WanTransformer3DModel(in_channels=4, out_channels=4, **sizes)
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 7, 16),
    }
    return model, inputs


MODELS = {"QwenImageTransformer2DModel": qwen_image, "WanTransformer3DModel": wan}


def configuration(stage: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        # DeepSpeed otherwise partitions no parameter of fewer than 100,000 elements, which these all have.
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }


def result(measure: Callable[[], str]) -> str:
    """Return what a measurement says; an error is a result."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - of any kind: that is what is measured
        return f"{type(error).__name__}: {' '.join(str(error).split())[:220]}"


def whole(model: torch.nn.Module) -> Tensors:
    """Return each parameter, gathered."""
    found = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().clone()
    return found


def compared(found: Tensors, expected: Tensors) -> str:
    """Return in words whether tensors are bit-equal."""
    wrong = [name for name in expected if name not in found or not torch.equal(found[name].float(), expected[name].float())]
    return f"{len(wrong)} of {len(expected)} tensors wrong" if wrong else f"{len(expected)} tensors bit-equal"


def loss_of(model: Any, inputs: Tensors) -> torch.Tensor:
    """Return a loss of one input."""
    output: torch.Tensor = model(**inputs, return_dict=False)[0]
    return (output.float() - 1).square().mean()


def plain_losses(model: torch.nn.Module, inputs: Tensors) -> list[float]:
    """Return the losses of a single process."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def measured(make: Callable[[], tuple[torch.nn.Module, Tensors]], stage: int, folder: Path) -> dict[str, str]:
    """Return what happens with one model under one stage."""
    torch.manual_seed(0)
    model, inputs = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "checkpoint")
    dist.barrier()
    kind: Any = type(model)
    plain = plain_losses(model, inputs)
    found = {}
    if stage == 3:

        def under_init() -> str:
            with deepspeed.zero.Init(config_dict_or_path=configuration(stage)):
                partitioned = kind.from_pretrained(folder / "checkpoint")
            return compared(whole(partitioned), expected)

        found["load inside zero.Init"] = result(under_init)
    loaded = kind.from_pretrained(folder / "checkpoint")
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=RATE)
    engine, *_ = deepspeed.initialize(model=loaded, optimizer=optimizer, config=configuration(stage))
    found["load, then initialize"] = result(lambda: compared(whole(engine.module), expected))

    def train() -> str:
        losses = []
        for _ in range(STEPS):
            loss = loss_of(engine, inputs)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        apart = max(abs(one - other) / abs(other) for one, other in zip(losses, plain, strict=True))
        return f"{STEPS} losses within {apart:.0e} of a single process"

    found["train"] = result(train)
    held = sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in engine.module.parameters())
    found["held by a rank"] = f"{held:,} of {sum(tensor.numel() for tensor in expected.values()):,} parameter elements"
    trained = whole(engine.module)

    def save_engine() -> str:
        assert engine.save_16bit_model(folder / "engine", "model.pt")
        return compared(torch.load(folder / "engine" / "model.pt"), trained)

    def save_pretrained() -> str:
        if dist.get_rank() == 0:
            engine.module.save_pretrained(folder / "saved")
        dist.barrier()
        return compared(load_file(folder / "saved" / "diffusion_pytorch_model.safetensors"), trained)

    found["save_16bit_model"] = result(save_engine)
    found["save_pretrained"] = result(save_pretrained)
    return found


def main() -> None:
    """Measure, and print a table on rank 0."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled at first use, for a minute
    deepspeed.init_distributed("gloo")
    place = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(place)
    rows = []
    for name, make in MODELS.items():
        for stage in STAGES:
            folder = Path(str(place[0]), f"{name}-{stage}")
            rows += [(name, stage, what, said) for what, said in measured(make, stage, folder).items()]
    if dist.get_rank() == 0:
        print(
            f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, diffusers {diffusers.__version__}, 2 ranks, gloo\n"
        )
        print("| model | ZeRO | step | result |\n|---|---|---|---|")
        print("".join(f"| `{name}` | {stage} | {what} | {said} |\n" for name, stage, what, said in rows))
    sys.stdout.flush()
    dist.barrier()


if __name__ == "__main__":
    main()
