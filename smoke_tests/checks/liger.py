"""Liger's kernels, in place of transformers' modules, train as those do."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from smoke_tests import families
from smoke_tests.checks import loading, training
from smoke_tests.checks.attention import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged, one_line

_ANSWER = "liger: "  # before what the process below prints
_APPLY = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from smoke_tests.checks import liger
liger.try_to_apply(sys.argv[2])
"""
_APPLY_DEADLINE = 120.0  # seconds; it imports torch and transformers


def problem_when_applied(model_type: str) -> str:
    """Return why the kernels cannot be applied to a model of this type, "" where they can.

    A process of its own applies them, without a GPU: some releases raise ImportError when they do, and others replace nothing,
    with the transformers that is installed.
    """
    if problem := _applied_elsewhere(model_type):
        versions = (f"{name} {importlib.metadata.version(name)}" for name in ("liger-kernel", "transformers"))
        return f"{' does not work with '.join(versions)}: {problem}"
    return ""


def _applied_elsewhere(model_type: str) -> str:
    """Return what goes wrong when a new process applies the kernels, in one line, "" for nothing."""
    place = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _APPLY, json.dumps([place, *sys.path]), model_type]
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=_APPLY_DEADLINE)
    except subprocess.TimeoutExpired:
        return f"it was not applied within {_APPLY_DEADLINE:.0f} s"
    said = [line for line in ended.stdout.splitlines() if line.startswith(_ANSWER)]
    return said[-1].removeprefix(_ANSWER) if said else f"Python ended with {ended.returncode} when it was applied"


def try_to_apply(model_type: str) -> None:
    """Apply the kernels to the class of this model type, and print what goes wrong, for `_applied_elsewhere`."""
    import transformers

    problem = ""
    try:
        with applied(getattr(transformers, families.get(model_type).model_class)):
            pass
    except Exception as error:  # noqa: BLE001 - any error says that the kernels cannot be used
        problem = one_line(error)
    print(f"{_ANSWER}{problem}", flush=True)


@contextlib.contextmanager
def applied(model_class: Any) -> Iterator[list[str]]:
    """Have models of `model_class` begin with liger's kernels, and yield what was replaced; afterwards nothing is.

    Raises RuntimeError where liger replaces nothing, which it does with a warning for versions that it does not know.
    """
    from liger_kernel.transformers import monkey_patch

    module = sys.modules[model_class.__module__]
    before = _attributes(module)
    model_type = model_class.config_class.model_type
    try:
        monkey_patch._apply_liger_kernel(model_type)
        replaced = _replaced(before)
        if not replaced:
            version = importlib.metadata.version("liger-kernel")
            raise RuntimeError(f"liger-kernel {version}: expected kernels for {model_type}, found none applied")
        yield replaced
    finally:
        for owner, attributes in before:
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
            for name in [name for name in vars(owner) if name not in attributes]:
                delattr(owner, name)


def _attributes(module: ModuleType) -> list[tuple[Any, dict[str, Any]]]:
    """Return the attributes of a module and of the classes that it defines."""
    classes = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    return [(owner, dict(vars(owner))) for owner in (module, *classes)]


def _replaced(before: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Return which attributes are others than `before`, by name."""
    return [
        name if isinstance(owner, ModuleType) else f"{owner.__name__}.{name}"
        for owner, attributes in before
        for name, value in attributes.items()
        if vars(owner).get(name) is not value
    ]


def _measured(context: RankContext, state: TrainingState) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of this rank's sample and the ranks' gradients of the probes, and drop the engine."""
    state.model = loading.ready_model(context, context.source)
    training.start_engine(context, state)
    loss = state.engine(**training.own_sample(context)).loss
    state.engine.backward(loss)
    found = loss.item(), training.full_gradients(state.engine, training.engine_probes(context, state.engine))
    state.clear()
    return found


def liger(context: RankContext, state: TrainingState) -> Outcome:
    """Check that a model with liger's kernels has the loss and the gradients of one without, on an engine of the stage."""
    importlib.import_module(context.model_class.__module__)
    expected_loss, expected = _measured(context, state)
    with applied(context.model_class) as replaced:
        loss, found = _measured(context, state)
    problems = training.gradient_problems(found, list(expected))
    error = abs(loss - expected_loss)
    if not error <= LOSS_TOLERANCE[context.dtype]:
        problems.append(f"loss: expected {expected_loss:.6g} (transformers), found {loss:.6g} (liger)")
    for name in expected.keys() & found.keys():
        off = (found[name] - expected[name]).abs().max().item() / max(expected[name].abs().max().item(), 1e-12)
        if not off <= (allowed := GRADIENT_TOLERANCE[context.dtype]):
            problems.append(f"the gradient of {name} is off by {off:.2g} of its largest element, at most {allowed:g} allowed")
    return judged(problems, f"loss within {error:.1g} of transformers' with liger's {', '.join(sorted(replaced))}")
