"""Failures that upstream fixed: the checks that prove the fix, where the controls of earlier stacks have nothing to detect.

`expectations` in stack.toml says which of the two an environment runs.
"""

import contextlib

from smoke_tests import runtime
from smoke_tests.checks import loading
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import damage
from smoke_tests.outcome import Outcome, judged


def late_gathers(context: RankContext, state: TrainingState) -> Outcome:
    """Check that ZeRO-3 loading over gloo is bit-equal without the workaround, also with gathers as late as possible.

    Earlier stacks lose the race sometimes in the first case, and always in the second.
    """
    problems = []
    truth = context.workspace.full_width
    for how, gathers in (("as it is", contextlib.nullcontext()), ("with late gathers", runtime.late_gathers())):
        state.clear()
        with gathers:
            state.model, _ = loading.read_model(context, truth)
        if wrong := loading.wrong_tensors(context, state.model, truth):
            name, what = next(iter(wrong.items()))
            problems.append(f"{how} {len(wrong)} tensors are wrong: {name} {what}")
    return judged(problems, "bit-equal without the workaround, however late a gather arrives")


def both_key_layouts(context: RankContext, state: TrainingState) -> Outcome:
    """Check that published keys and those of later versions of transformers load as the same tensors, bit for bit."""
    problems = []
    later = context.workspace.damaged(damage.LATER_KEY_LAYOUT)
    for layout, folder in (("published keys", context.workspace.slim), ("later keys", later)):
        state.clear()
        state.model, info = loading.read_model(context, folder)
        wrong = loading.wrong_tensors(context, state.model, context.workspace.slim)
        found = loading.key_problems(info, context.family.unpublished) + [f"{name} {what}" for name, what in wrong.items()]
        problems += [f"{layout}: {what}" for what in found]
    return judged(problems, "published and later keys load bit-equal, none missing, unexpected or mismatched")
