"""Hugging Face's Trainer with a configuration file as projects ship them: `auto` values, DeepSpeed's own AdamW."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests import runtime
from smoke_tests.checks import baseline, loading, offload, saving, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.machine import software
from smoke_tests.outcome import Outcome, judged

STEPS, ACCUMULATION, CLIPPING = 3, 2, 1.0
SAVED_AFTER = 2
_END = "end.json"  # in the Trainer's output folder: losses and digests when it ended
RATE, EPSILON, DECAY = 2e-4, 1e-5, 0.01
# Labels of each sample: the mean over tokens, which transformers 5 takes, is then the mean over samples, which 4.49 takes.
LABELS = 4
# Absolute; the Trainer of transformers 4.49 logs four decimals.
PARITY = {torch.float32: 2e-4, torch.bfloat16: 0.1}
# Of the norm of all first moments, a weighted sum of the gradients as they reach the optimizer. Adam's steps hardly depend on
# their size, so that losses and weights do not tell whether they were clipped and scaled.
MOMENTS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
# Of a weight up to 4, after a resume with DeepSpeed's AdamW on a CPU. Its op keeps beta^step as a running product, which no
# checkpoint has, and begins with a power after a resume: measured 2.4e-7, where a step moves a weight by 2e-4.
RESUMED = 1e-6


def _sample(context: RankContext, number: int) -> dict[str, torch.Tensor]:
    """Return the sample of that number; those of step 0 come first, of all ranks and micro-batches."""
    sample = samples.sample(context.family, context.processor, samples.scenes(number + 1)[number])
    labelled = (sample["labels"] != samples.IGNORED).nonzero()[LABELS:, 1]
    sample["labels"][:, labelled] = samples.IGNORED
    return sample


def _count(context: RankContext) -> int:
    return STEPS * ACCUMULATION * context.leg.world_size


def plain_run(context: RankContext, _: TrainingState) -> Outcome:
    """Take the trainer's optimizer steps in one process without Trainer and DeepSpeed, with its clipping and batch size."""
    model = loading.ready_model(context, context.source).to(context.torch_device).train()
    everything = [context.on_device(_sample(context, number)) for number in range(_count(context))]
    size = len(everything) // STEPS
    batches = [everything[step * size : (step + 1) * size] for step in range(STEPS)]
    made: list[torch.optim.Optimizer] = []

    def adamw(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(parameters, lr=RATE, eps=EPSILON, weight_decay=DECAY))
        return made[0]

    losses = baseline.optimizer_steps(model, batches, adamw, clipping=CLIPPING, schedule=lambda step: 1 - step / STEPS)
    reference = {"losses": losses, "moments": math.sqrt(_moments(made[0]))}
    context.workspace.trainer_reference.write_text(json.dumps(reference))
    return judged(training.loss_problems(losses[:1]), f"loss {training.numbers(losses)}", losses=losses)


def _moments(optimizer: torch.optim.Optimizer) -> float:
    """Return the sum of the squares of an optimizer's first moments: of a rank's part of them."""
    return sum(float(state["exp_avg"].double().square().sum()) for state in optimizer.state.values() if "exp_avg" in state)


class _Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):  # type: ignore[misc]
    """The samples of all steps, as a Trainer reads them."""

    def __init__(self, context: RankContext) -> None:
        self._samples = [_sample(context, number) for number in range(_count(context))]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self._samples[number]


def _arguments(context: RankContext, folder: Path, config: dict[str, Any]) -> Any:
    """Return the Trainer's arguments. While they are alive, transformers loads models as `config` says."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        deepspeed=config,
        use_cpu=context.device == "cpu",
        bf16=context.dtype == torch.bfloat16,
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        max_grad_norm=CLIPPING,
        learning_rate=RATE,
        adam_epsilon=EPSILON,
        weight_decay=DECAY,
        lr_scheduler_type="linear",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="steps",
        save_steps=SAVED_AFTER,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _trainer(context: RankContext, arguments: Any) -> Any:
    """Return a Trainer with a freshly loaded model, which reads the samples in order."""
    from transformers import Trainer

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder(
        model=loading.ready_model(context, context.source),
        args=arguments,
        train_dataset=_Samples(context),
        data_collator=lambda rows: rows[0],
    )


def _losses(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def train(context: RankContext, _: TrainingState) -> Outcome:
    """Check that the Trainer's losses are those of a plain loop with the same settings; leave a checkpoint to resume from."""
    folder = context.workspace.trainer(context.stage)
    own_op = offload.ready(context, "fused_adam")
    trainer = _trainer(context, _arguments(context, folder, runtime.shipped_config(context.stage, torch_adam=not own_op)))
    passes = _forward_passes(context, trainer.model)
    trainer.train()
    found, reference = _losses(trainer), json.loads(context.workspace.trainer_reference.read_text())
    problems = _loss_problems(context, found, reference["losses"])
    problems += _moment_problems(context, trainer.model_wrapped, reference["moments"])
    problems += _setting_problems(trainer.model_wrapped.optimizer.param_groups)
    once = STEPS * ACCUMULATION
    if not trainer.model.is_gradient_checkpointing or len(passes) < 2 * once:
        problems.append(f"gradient checkpointing: expected {2 * once} forward passes of a layer, found {len(passes)}")
    end = {"losses": found, "digests": saving.digests(context, trainer.model_wrapped), "weights": _weights(context, trainer)}
    if context.rank == 0:
        (folder / _END).write_text(json.dumps(end))
    return judged(problems, "trained", losses=found)


def resume(context: RankContext, _: TrainingState) -> Outcome:
    """Check in fresh processes that the Trainer resumes as it went on before, and that `save_model` reloads bit-equal."""
    folder = context.workspace.trainer(context.stage)
    before = json.loads((folder / _END).read_text())
    own_op = offload.ready(context, "fused_adam")
    trainer = _trainer(context, _arguments(context, folder, runtime.shipped_config(context.stage, torch_adam=not own_op)))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED_AFTER}"))
    losses, expected = _losses(trainer), before["losses"]
    problems = _persistence_problems(context, trainer.model_wrapped)
    problems += _setting_problems(trainer.model_wrapped.optimizer.param_groups)
    tolerance = 0.0 if context.device == "cpu" else PARITY[context.dtype] / 10
    if not abs(losses[-1] - expected[-1]) <= tolerance:
        problems.append(f"the last loss after the resume: expected {expected[-1]!r}, found {losses[-1]!r}")
    digests, weights = saving.digests(context, trainer.model_wrapped), _weights(context, trainer)
    if context.device == "cpu" and context.rank == 0:
        different = _moved(before["weights"], weights) if own_op else _changed(before["digests"], digests)
        problems += [f"{name} differs after the resume" for name in different]
    trainer.save_model(str(folder / "saved"))
    problems += _reload_problems(context, folder / "saved", digests)
    advice = f"fused_adam is not compiled; {software.OWN_ADAM}" if context.device == "cuda" else "no op for the CPU"
    how = "DeepSpeed's AdamW" if own_op else f"torch's AdamW: {advice}"
    resumed = f"resumed within {RESUMED:.0e}, saved bit-equal" if own_op else "resumed and saved bit-equal"
    return judged(problems, f"loss {training.numbers(losses)} as a plain loop; {resumed}; {how}")


def _persistence_problems(context: RankContext, engine: Any) -> list[str]:
    """Return how ZeRO-3 applied a persistence threshold other than one that keeps small parameters whole, and no others."""
    if context.stage != 3:
        return []
    whole = [parameter.ds_persist for parameter in engine.module.parameters()]
    if any(whole) and not all(whole):
        return []
    found = f"{sum(whole)} of {len(whole)} whole"
    return [f"persistence threshold: expected some parameters whole and some partitioned, found {found}"]


def _weights(context: RankContext, trainer: Any) -> dict[str, list[float]]:
    """Return name -> sample of each weight of the engine, on rank 0."""
    return saving.of_whole_tensors(context, trainer.model_wrapped, training.sampled)


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in after if after[name] != before.get(name)]


def _moved(before: dict[str, list[float]], after: dict[str, list[float]]) -> list[str]:
    return [name for name in after if not training.off_by(before[name], after[name]) <= RESUMED]


def _forward_passes(context: RankContext, model: Any) -> list[None]:
    """Return a list that grows with each forward pass of the language model's first layer, also in a backward pass."""
    passes: list[None] = []
    probe = training.language_probes(context.family, [name for name, _ in model.named_parameters()])[0]
    model.get_submodule(probe.removesuffix(".weight")).register_forward_hook(lambda *_: passes.append(None))
    return passes


def _setting_problems(groups: list[dict[str, Any]]) -> list[str]:
    """Return how the engine's optimizer differs from what the Trainer's arguments say, which its configuration has as `auto`.

    Three steps show little of it in a loss. Norms and biases may have no decay, as the Trainer chooses. The learning rate has
    reached its end, which a schedule that began anew has not.
    """
    problems = []
    for name, expected in {"lr": 0.0, "eps": EPSILON, "betas": (0.9, 0.999), "weight_decay": DECAY}.items():
        found = {tuple(group[name]) if name == "betas" else group[name] for group in groups}
        if found - {expected, *((0.0,) if name == "weight_decay" else ())} or expected not in found:
            problems.append(f"{name} of the optimizer: expected {expected}, as the arguments say, found {sorted(found)}")
    return problems


def _moment_problems(context: RankContext, engine: Any, expected: float) -> list[str]:
    """Return how the first moments of all ranks differ in size from those of a plain loop."""
    total = torch.tensor([_moments(engine.optimizer.optimizer)], dtype=torch.float64, device=context.torch_device)
    dist.all_reduce(total)
    found = math.sqrt(total.item())
    if abs(found / expected - 1) <= MOMENTS[context.dtype]:
        return []
    return [f"gradients: {found / expected:.3g} times as large as in a plain loop, by Adam's moments: see clipping and scaling"]


def _loss_problems(context: RankContext, found: list[float], expected: list[float]) -> list[str]:
    """Return how the Trainer's losses differ from those of a plain loop."""
    if len(found) != len(expected):
        return [f"expected {len(expected)} losses, found {len(found)}"]
    worst = training.off_by(expected, found)
    if worst <= PARITY[context.dtype]:
        return []
    what = f"losses: expected {training.numbers(expected)} (plain loop), found {training.numbers(found)} (Trainer)"
    return [f"{what}; off by {worst:.2g}, at most {PARITY[context.dtype]:.0e} allowed"]


def _reload_problems(context: RankContext, folder: Path, expected: dict[str, str]) -> list[str]:
    """Return how what `save_model` wrote differs from the engine's weights `expected`, on rank 0, which alone has both."""
    if context.rank != 0:
        return []
    with loading.without_zero():
        model, info = loading.load_with(context.model_class, folder, context.dtype)
    found = {name: saving.digest(parameter) for name, parameter in model.named_parameters()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"save_model: {what}" for what in loading.key_problems(info) + [f"{name} differs" for name in wrong]]
