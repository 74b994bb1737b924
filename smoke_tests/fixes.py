"""What upstream has fixed: where a control of earlier stacks has nothing to see any more, the check that proves why.

`expectations` in stack.toml says which of the two an environment promises.
"""

import contextlib

from . import controls, stack
from .checks import Bench, key_problems, read_model, wrong_tensors
from .outcome import Outcome, judged


def late_gathers(bench: Bench) -> Outcome:
    """ZeRO-3 loading over gloo without the workaround: bit-equal as it comes, and when the race is lost on purpose.

    For a race that happens not to be lost proves nothing.
    """
    problems = []
    late = stack.changed_gathers(stack.late_gather)
    for how, gathers in (("as it comes", contextlib.nullcontext()), ("with late gathers", late)):
        bench.drop()
        with gathers:
            bench.model, _ = read_model(bench, bench.made)
        problems += [f"{how}: {name} {what}" for name, what in wrong_tensors(bench, bench.made).items()]
    return judged(problems, "bit-equal without the workaround, and when no gather arrives before it is waited for")


def both_key_layouts(bench: Bench) -> Outcome:
    """The keys of published checkpoints and those of transformers 4.52 and later load as the same tensors, bit for bit."""
    problems = []
    for layout, folder in (("published keys", controls.SLIM), ("later keys", "later-key-layout")):
        bench.drop()
        bench.model, info = read_model(bench, bench.work / folder)
        wrong = wrong_tensors(bench, bench.work / controls.SLIM)
        problems += [f"{layout}: {what}" for what in key_problems(info) + [f"{name} {what}" for name, what in wrong.items()]]
    return judged(problems, "published and later keys load bit-equal, none missing, unexpected or mismatched")
