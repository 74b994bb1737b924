"""The synthetic checkpoint and its damaged copies, written before anything loads them."""

import os
import shutil

from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import damage, samples, tiny_checkpoint
from smoke_tests.outcome import Outcome, passed
from smokehouse_loader import inspect_checkpoint


def write_checkpoints(context: RankContext, _: TrainingState) -> Outcome:
    """Write the synthetic checkpoints and their damaged copies. Raises ValueError where the family does not fit its model."""
    workspace, family = context.workspace, context.family
    tiny_checkpoint.write(workspace.full_width, family, samples.corpus())
    if problems := family.problems(tiny_checkpoint.model_shapes(workspace.full_width, family)):
        raise ValueError("; ".join(problems))  # ends the run: no later result would mean anything
    if family.trained_width:
        tiny_checkpoint.write(workspace.synthetic, family, samples.corpus(), width=family.trained_width)
    else:
        shutil.copytree(workspace.full_width, workspace.synthetic, copy_function=os.link)
    damage.write_damaged(workspace, family)
    return passed(f"{inspect_checkpoint(workspace.synthetic).elements:,} parameters, {len(damage.DAMAGES)} damaged copies")
