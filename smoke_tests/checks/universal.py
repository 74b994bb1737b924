"""An engine checkpoint goes on with another number of ranks and nodes, once it is converted to DeepSpeed's universal format.

See: https://www.deepspeed.ai/tutorials/universal-checkpointing/
"""

import json
from types import SimpleNamespace

import torch

from smoke_tests.checks import loading, saving, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples
from smoke_tests.outcome import Outcome, failed, judged, passed

TAG = f"{saving.TAG}_universal"


def convert(context: RankContext, _: TrainingState) -> Outcome:
    """Check that the engine checkpoint of all ranks can be converted."""
    from deepspeed.checkpoint import ds_to_universal

    folder = context.workspace.engine_checkpoints(context.stage)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    # Under ZeRO-2 a checkpoint lacks the version of the format, unless the training program has put it there.
    options["inject_missing_state"] = True
    ds_to_universal.main(SimpleNamespace(input_folder=str(folder / saving.TAG), output_folder=str(folder / TAG), **options))
    count = sum(path.is_dir() for path in (folder / TAG / "zero").iterdir())
    return passed(f"{count} tensors with their moments")


def resume(context: RankContext, state: TrainingState) -> Outcome:
    """Check that fewer ranks, on one node, go on from the converted checkpoint with the losses that all ranks had."""
    every = context.leg.world_size
    config = context.engine_config()
    config |= {"train_batch_size": every, "gradient_accumulation_steps": every // context.world_size}
    own = [training.own_sample(context, rank) for rank in range(context.rank, every, context.world_size)]
    with loading.transformers_zero(config):
        state.model = loading.ready_model(context, context.source)
        training.start_engine(context, state, config | {"checkpoint": {"load_universal": True}})
        # A step of its own first, so that nothing which is not restored is right by chance.
        _step(context, state, own)
        folder = context.workspace.engine_checkpoints(context.stage)
        loaded, _ = state.engine.load_checkpoint(folder, tag=TAG)
        if loaded is None:
            return failed(f"{folder / TAG}: DeepSpeed found no engine checkpoint")
        losses = [_step(context, state, own) for _ in range(training.RESUME_STEPS)]
    expected = json.loads(context.workspace.losses(context.stage).read_text())
    worst = training.off_by(expected, losses)
    limit = training.PARITY[context.dtype]
    said = f"losses: expected {training.numbers(expected)} as on {every} ranks, found {training.numbers(losses)}"
    problems = [] if worst <= limit else [f"{said}; off by {worst:.2g}, at most {limit:.0e} allowed"]
    return judged(problems, f"{context.world_size} ranks in place of {every}, next losses within {worst:.1g}", losses=losses)


def _step(context: RankContext, state: TrainingState, own: list[dict[str, torch.Tensor]]) -> float:
    """Do one optimizer step on the samples of all ranks, of which this one has its `own`; return the global loss."""
    total = 0.0
    for sample in own:
        loss = samples.loss(state.engine, sample)
        state.engine.backward(loss)
        state.engine.step()
        total += loss.item() / len(own)
    return training.world_mean(context, total)
