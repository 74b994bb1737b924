"""The attention kernels that training uses give what the plain formula gives."""

import importlib.util
from typing import Any

import torch

from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.families import Family
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, judged

# Absolute, of the loss; and of a probe's largest gradient. Measured: 1e-6 and 1e-5 in fp32.
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


# How a sample is said to be that has this many tokens of padding.
PADDED, PADDING = " of a padded sample", 7
# Transformers' own choice for each part of a model.
CHOICE = "transformers' choice"


def implementations(family: Family, device: str) -> list[str]:
    """Return the kernels to compare with `eager`; what transformers chooses, where a part of the model has none of them."""
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return ["sdpa", *(["flash_attention_2"] if flash else [])] if family.fused_attention else [CHOICE]


def _loaded(context: RankContext, implementation: str) -> Any:
    """Return a model with that attention. Raises RuntimeError where it has another."""
    chosen = {} if implementation == CHOICE else {"attn_implementation": implementation}
    model, _ = loading.load_with(context.model_class, context.source, context.dtype, **chosen)
    found = {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}
    if implementation == CHOICE and found == {"eager"}:
        raise RuntimeError("expected transformers to choose a kernel for a part of the model, found eager attention in all")
    if implementation != CHOICE and model.config._attn_implementation != implementation:
        raise RuntimeError(f"expected {implementation} attention, transformers chose {model.config._attn_implementation}")
    return model


def _measured(context: RankContext, implementation: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the losses of one sample, as it is and padded, and the probes' gradients of their sum, with that attention."""
    model = _loaded(context, implementation)
    model.to(context.torch_device).train()
    sample = training.own_sample(context)
    losses = {"": model(**sample).loss}
    if "attention_mask" in sample:
        losses |= {PADDED: model(**padded(sample)).loss}
    torch.stack([*losses.values()]).sum().backward()
    parameters: dict[str, Any] = dict(model.named_parameters())
    gradients = {name: parameters[name].grad.float().cpu() for name in training.probes(context.family, parameters)}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def padded(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a sample as a shorter one of a batch: tokens on the left that are no part of it, which its mask says."""
    tokens = sample["input_ids"].shape
    added = {"labels": samples.IGNORED, "attention_mask": 0, "input_ids": int(sample["input_ids"][0, -1])}
    return {
        name: torch.nn.functional.pad(value, (PADDING, 0), value=added.get(name, 0)) if value.shape == tokens else value
        for name, value in sample.items()
    }


def attention(context: RankContext, _: TrainingState) -> Outcome:
    """Check that sdpa, and flash_attention_2 where it is installed, have the loss and gradients of eager attention.

    Where a part of the model has neither, what transformers chooses for each is compared.
    """
    expected_losses, expected = _measured(context, "eager")
    problems, said = [], []
    for name in implementations(context.family, context.device):
        losses, gradients = _measured(context, name)
        said.append(f"{name} within {training.worst(abs(losses[how] - loss) for how, loss in expected_losses.items()):.1g}")
        for how, loss in expected_losses.items():
            if not abs(losses[how] - loss) <= LOSS_TOLERANCE[context.dtype]:
                problems.append(f"{name}: loss{how}: expected {loss:.6g} (eager), found {losses[how]:.6g}")
        for parameter, gradient in gradients.items():
            off = (gradient - expected[parameter]).abs().max().item() / max(expected[parameter].abs().max().item(), 1e-12)
            if not off <= (allowed := GRADIENT_TOLERANCE[context.dtype]):
                found = f"{off:.2g} of its largest element, at most {allowed:g} allowed"
                problems.append(f"{name}: the gradient of {parameter} is off by {found}")
    return judged(problems, f"{', '.join(said)} of eager")
