"""What upstream has fixed: where a control of earlier stacks has nothing to see any more, the check that proves why.

`expectations` in stack.toml says which of the two an environment promises.
"""

import contextlib

from . import stack
from .checks import Bench, key_problems, read_model, wrong_tensors
from .fixtures import damage
from .outcome import Outcome, judged
from .workspace import Workspace


def late_gathers(bench: Bench) -> Outcome:
    """ZeRO-3 loading over gloo without the workaround: bit-equal as it comes, and with gathers as late as they can be.

    Earlier stacks lose the race now and then in the first, and each time in the second.
    """
    problems = []
    for how, gathers in (("as it comes", contextlib.nullcontext()), ("with late gathers", stack.late_gathers())):
        bench.drop()
        with gathers:
            bench.model, _ = read_model(bench, bench.made)
        if wrong := wrong_tensors(bench, bench.made):
            name, what = next(iter(wrong.items()))
            problems.append(f"{how} {len(wrong)} tensors are wrong: {name} {what}")
    return judged(problems, "bit-equal without the workaround, however late a gather arrives")


def both_key_layouts(bench: Bench) -> Outcome:
    """The keys of published checkpoints and those of transformers 4.52 and later load as the same tensors, bit for bit."""
    problems = []
    work = Workspace(bench.work)
    for layout, folder in (("published keys", work.slim), ("later keys", work.damaged(damage.LATER_KEY_LAYOUT))):
        bench.drop()
        bench.model, info = read_model(bench, folder)
        wrong = wrong_tensors(bench, work.slim)
        problems += [f"{layout}: {what}" for what in key_problems(info) + [f"{name} {what}" for name, what in wrong.items()]]
    return judged(problems, "published and later keys load bit-equal, none missing, unexpected or mismatched")
