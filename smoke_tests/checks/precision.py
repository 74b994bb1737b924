"""bf16, exercised even on a CPU."""

from smoke_tests.checks import loading, memory, saving, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged


def bf16(context: RankContext, state: TrainingState) -> Outcome:
    """Check that bf16 loads bit-equal to the file's numbers rounded to bf16, and trains; save its 16-bit weights."""
    state.model, state.loading_info = loading.read_model(context, context.source)
    problems = loading.key_problems(state.loading_info, context.family.unpublished)
    problems += loading.partition_problems(context, state.model, partitioned=context.loads_partitioned)
    problems += [f"{name} {what}" for name, what in loading.wrong_tensors(context, state.model, context.source).items()]
    training.start_engine(context, state)
    sample, probes = training.own_sample(context), training.engine_probes(context, state.engine)
    state.losses = training.engine_steps(context, state, sample, training.TRAIN_STEPS, probes)
    problems += training.loss_problems(state.losses)
    problems += training.gradient_problems(state.gradients, probes) + memory.state_problems(state.engine)
    problems += saving.save_16bit(context, state)
    return judged(problems, f"loss {training.numbers(state.losses)}, 16-bit weights saved", losses=state.losses)
