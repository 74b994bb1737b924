"""Training a part of the model: a LoRA adapter, or all but the vision tower."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from smoke_tests import needs
from smoke_tests.checks import baseline, loading, saving, training
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


def _with_adapter(context: RankContext, base: Any) -> Any:
    """Return a model with a new adapter."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=_targets(context, base)))


def _unlike_plain(context: RankContext, state: TrainingState, plain: Any, losses: list[float]) -> list[str]:
    """Return how losses and first gradients differ from those of the model `plain` in one process: what ranks lose shows there.

    The gradients are those that `state` has.
    """
    plain.to(context.torch_device).train()
    names = [name for name, _ in plain.named_parameters()]
    watch = baseline.Watch([names.index(name) for name in state.gradients])
    batch = [training.own_sample(context, rank) for rank in range(context.world_size)]
    expected = baseline.optimizer_steps(plain, [batch] * STEPS, context.optimizer, watch=watch)
    found = [training.sampled(gradient) for gradient in state.gradients.values()]
    problems = []
    if not training.off_by(expected, losses) <= training.PARITY[context.dtype]:
        problems.append(f"losses: expected {training.numbers(expected)} (single process), found {training.numbers(losses)}")
    off = training.worst(training.unlike(watch.gradients, found))
    if not off <= (allowed := training.GRADIENTS[context.dtype]):
        problems.append(f"gradients: off by {off:.2g} of those of a single process, at most {allowed:g} allowed")
    return problems


def _whole(context: RankContext, engine: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Return name -> copy of a whole parameter. Every rank must call it."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters([parameters[name] for name in names], enabled=context.stage == 3):
        return {name: parameters[name].detach().clone() for name in names}


def _plain_adapter_problems(
    context: RankContext, state: TrainingState, initial: dict[str, torch.Tensor], losses: list[float]
) -> list[str]:
    """Return how training differs from that of one process whose adapter begins with the weights `initial`; on rank 0."""
    if context.rank != 0 or needs.is_large(state.model.parameters()):
        return []
    with loading.without_zero():
        base, _ = loading.load_with(context.model_class, context.source, context.dtype)
        plain = _with_adapter(context, base)
    for name, parameter in plain.named_parameters():
        if name in initial:
            parameter.data.copy_(initial[name])
    return _unlike_plain(context, state, plain, losses)


def lora(context: RankContext, state: TrainingState) -> Outcome:
    """Check that a LoRA adapter trains as in one process, the base stays bit-equal, and the saved adapter merges right."""
    base = loading.ready_model(context, context.source)
    targets = _targets(context, base)
    state.model = _with_adapter(context, base)
    training.start_engine(context, state)
    names = [name for name, _ in state.engine.module.named_parameters() if "lora_" in name]
    initial, masters = _whole(context, state.engine, names), training.master_samples(state.engine, names)
    before = saving.digests(context, state.engine)
    upper = [name for name in names if "lora_B" in name]  # the others have a first gradient of 0
    losses = training.engine_steps(context, state, training.own_sample(context), STEPS, upper)
    after = saving.digests(context, state.engine)
    trained = training.master_samples(state.engine, names)
    problems = training.loss_problems(losses)
    problems += [
        f"{_base_name(name)} of the base changed" for name in after if "lora_" not in name and before[name] != after[name]
    ]
    problems += [f"{name} did not change" for name in names if masters[name] == trained[name]]
    problems += _plain_adapter_problems(context, state, initial, losses)
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
            found = f"{off / largest:.2g} of what the adapter adds, at most {MERGE_TOLERANCE:g} allowed"
            problems.append(f"merged {name} is off by {found}")
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
    """Check that with a frozen vision tower training is that of one process, and changes the language model alone."""
    state.model = loading.ready_model(context, context.source)
    _freeze_vision(context, state.model)
    training.start_engine(context, state)
    before = saving.digests(context, state.engine)
    probes = training.language_probes(context.family, [name for name, _ in state.engine.module.named_parameters()])
    losses = training.engine_steps(context, state, training.own_sample(context), STEPS, probes)
    after = saving.digests(context, state.engine)
    problems = training.loss_problems(losses)
    vision = [name for name in after if context.family.is_vision(name)]
    problems += [f"{name} is frozen and changed" for name in vision if before[name] != after[name]]
    problems += [f"{name} did not change" for name in probes if after and before[name] == after[name]]
    if context.rank == 0 and not needs.is_large(state.model.parameters()):
        with loading.without_zero():
            plain, _ = loading.load_with(context.model_class, context.source, context.dtype)
        _freeze_vision(context, plain)
        problems += _unlike_plain(context, state, plain, losses)
    return judged(problems, f"loss {training.numbers(losses)}, vision tower bit-equal")


def _freeze_vision(context: RankContext, model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not context.family.is_vision(name)
