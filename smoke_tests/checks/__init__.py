"""The checks: what must be true of an environment, one module per family of checks.

A check is a function `check(context, state) -> Outcome` that every rank of a job runs. `context` is what the rank was given,
`state` what it has built so far. It raises only what it does not expect, which ends the rank. `smoke_tests.plan` says which
checks run, in which order, and what each continues with.
"""

from smoke_tests.checks.context import RankContext, TrainingState, dtype_of

__all__ = ["RankContext", "TrainingState", "dtype_of"]
