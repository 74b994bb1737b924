"""Training a part of the model: a LoRA adapter, or all but the vision tower."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from smoke_tests.checks import loading, saving, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged

RANK, SCALE = 4, 8
STEPS = 2
# Of the largest element of what the adapter adds to a weight: after a few steps that is so little that fp32 has 3 digits of it.
MERGE_TOLERANCE = 1e-2


def _targets(context: RankContext, model: Any) -> list[str]:
    """Return the names of the modules that get an adapter: one in each layer of the language model."""
    names = training.language_probes(context.family, [name for name, _ in model.named_parameters()])
    return [name.removesuffix(".weight") for name in names]


def _base_name(name: str) -> str:
    """Return a parameter's name in the model without an adapter."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def lora(context: RankContext, state: TrainingState) -> Outcome:
    """Check that a LoRA adapter trains, that the base stays bit-equal, and that the saved adapter merges right."""
    from peft import LoraConfig, get_peft_model

    base = loading.ready_model(context, context.source)
    targets = _targets(context, base)
    state.model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=targets))
    training.start_engine(context, state)
    before = saving.digests(context, state.engine)
    losses = training.engine_steps(context, state, training.own_sample(context), STEPS)
    after = saving.digests(context, state.engine)
    problems = training.loss_problems(losses)
    problems += [
        f"{_base_name(name)} of the base changed" for name in after if "lora_" not in name and before[name] != after[name]
    ]
    problems += [f"{name} did not change" for name in after if "lora_B" in name and before[name] == after[name]]
    problems += _saving_problems(context, state, context.workspace.adapter(context.stage))
    return judged(problems, f"{len(targets)} modules, loss {training.numbers(losses)}, base equal, adapter saved and merged")


def _saving_problems(context: RankContext, state: TrainingState, folder: Path) -> list[str]:
    """Save the adapter as the Trainer does, and return what is wrong with it and with the model merged from it."""
    engine = state.engine
    # As accelerate's get_state_dict.
    whole = engine._zero3_consolidated_16bit_state_dict() if context.stage == 3 else engine.module.state_dict()
    if context.rank != 0:
        return []
    engine.module.save_pretrained(folder, state_dict=whole)
    adapter = load_file(folder / "adapter_model.safetensors")
    problems = [f"{name} was saved with shape {list(tensor.shape)}" for name, tensor in adapter.items() if not tensor.numel()]
    return problems or _merge_problems(context, folder, adapter, whole)


def _merge_problems(
    context: RankContext, folder: Path, adapter: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]
) -> list[str]:
    """Return how a model merged from the saved adapter differs from base + scale * B A of the engine's weights `trained`."""
    from peft import PeftModel

    added = _added(trained)
    if 2 * len(added) != len(adapter):
        return [f"expected an adapter of {2 * len(added)} tensors, found {len(adapter)}"]
    with loading.without_zero():
        # In fp32 whatever the run's precision: what a few steps add is less than the last bit of a weight in bf16.
        plain, _ = loading.load_with(context.model_class, context.source, torch.float32)
        base = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        merged = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload().state_dict()
    problems = []
    for name, before in base.items():
        if name not in added:
            problems += [f"merged {name} is another than the base's"] * (not torch.equal(merged[name], before))
            continue
        largest, off = (x.abs().max().item() for x in (added[name], merged[name] - before - added[name]))
        if not largest > 0:
            problems.append(f"the adapter adds nothing to {name}")
        elif not off <= MERGE_TOLERANCE * largest:
            problems.append(f"merged {name} is off by {off / largest:.2g} of what the adapter adds")
    return problems


def _added(trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return name of a weight of the base -> scale * B A, in fp32 on the CPU, which an adapter adds to it."""
    added = {}
    for name, down in trained.items():
        if ".lora_A." in name:
            up = trained[name.replace(".lora_A.", ".lora_B.")]
            target = f"{_base_name(name).partition('.lora_A.')[0]}.weight"
            added[target] = (up.float() @ down.float() * (SCALE / RANK)).cpu()
    return added


def frozen_vision(context: RankContext, state: TrainingState) -> Outcome:
    """Check that with a frozen vision tower training ends, changes no bit of the tower, and changes the language model."""
    state.model = loading.ready_model(context, context.source)
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad = not context.family.is_vision(name)
    training.start_engine(context, state)
    before = saving.digests(context, state.engine)
    losses = training.engine_steps(context, state, training.own_sample(context), STEPS)
    after = saving.digests(context, state.engine)
    problems = training.loss_problems(losses)
    vision = [name for name in after if context.family.is_vision(name)]
    problems += [f"{name} is frozen and changed" for name in vision if before[name] != after[name]]
    language = training.language_probes(context.family, after) if after else []
    problems += [f"{name} did not change" for name in language if before[name] == after[name]]
    return judged(problems, f"loss {training.numbers(losses)}, vision tower bit-equal")
