"""`load_model`: a checkpoint, loaded right or refused, on every rank."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smokehouse_loader import compare, hub, ready, zero
from smokehouse_loader.checkpoint import Checkpoint, inspect_checkpoint
from smokehouse_loader.consensus import Verdict
from smokehouse_loader.diagnosis import explain
from smokehouse_loader.errors import Finding, LoadError, first_line, shortened
from smokehouse_loader.failures import cure_of
from smokehouse_loader.fit import Fit, check_checkpoint, refuse_unreadable
from smokehouse_loader.model_class import concrete_class, read_config

# What gives from_pretrained its weights from elsewhere than the checkpoint's files, so that nothing could be compared.
_ELSEWHERE = ("from_flax", "from_tf", "gguf_file", "state_dict")


@dataclass(frozen=True)
class _Plan:
    """What is going to be loaded."""

    checkpoint: Checkpoint
    model_class: Any
    fit: Fit | None  # None where nothing is verified


def load_model(
    path: str | Path,
    *,
    model_class: Any = None,
    verify: Literal["shapes", "bits", "none"] = "shapes",
    **kwargs: Any,
) -> Any:
    """Load a checkpoint as from_pretrained does, or raise the same LoadError on every rank.

    `path` is a folder or a name on a hub, `model_class` a transformers class (or one with its from_pretrained), None for what
    `resolve_model_class` finds; `kwargs` are from_pretrained's. Works in plain, ZeRO-2 and ZeRO-3 runs; in a process group
    every rank has to call it.

    First the checkpoint's headers are checked against the class, with no memory taken; then it is loaded; then it is verified:
    with "shapes" that every parameter has the file's shape, and is partitioned exactly where ZeRO-3 is asked for; with "bits"
    also every bit of what this rank holds against the file; "none" leaves out the first check and the last. On gloo, gathers
    are waited for while it loads, where DeepSpeed does not do so itself.

    Raises LoadError, and ValueError for arguments that cannot be checked. The findings of the error say which rank saw them.
    """
    if verify not in ("shapes", "bits", "none"):
        raise ValueError(f"verify={verify!r} is not known; use 'shapes', 'bits' or 'none'")
    if elsewhere := [name for name in _ELSEWHERE if kwargs.get(name)]:
        raise ValueError(f"{elsewhere[0]} takes weights from elsewhere than {path}; use from_pretrained itself for that")
    _join()
    verdict = Verdict()
    plan, findings = _caught(lambda: _prepare(path, model_class, verify, kwargs))
    verdict.agree(findings)
    assert plan is not None
    with_info = bool(kwargs.pop("output_loading_info", False))
    try:
        with zero.safe_gathers() if zero.is_asked_for() else contextlib.nullcontext():
            model, info = plan.model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    except Exception as error:
        raise _in_the_middle(verdict, path, error) from error
    wrong, findings = _caught(lambda: [*_verify(model, info, plan, verify)])
    verdict.agree([*(wrong or ()), *findings])
    if plan.fit is not None:
        ready.ORIGINS[model] = ready.Origin(plan.checkpoint, plan.fit.plan, plan.fit.tied)
    return (model, info) if with_info else model


def _join() -> None:
    """Join the process group, as DeepSpeed would in the middle of the load."""
    import torch.distributed as dist

    if zero.is_asked_for() and not dist.is_initialized():
        import deepspeed

        deepspeed.init_distributed()


def _caught(work: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    """What `work` returns, or what it found wrong: nothing that one rank raises may leave the others waiting."""
    try:
        return work(), []
    except LoadError as refused:
        return None, list(refused.findings)
    except Exception as error:  # noqa: BLE001 - whatever one rank meets, the others must hear of
        return None, [_unforeseen("the load", error)]


def _unforeseen(where: str, error: Exception) -> Finding:
    known = explain(error)
    failure = known[0].failure.name if known else "unmeasured"
    return Finding(failure, where, first_line(error), cure_of(failure))


def _in_the_middle(verdict: Verdict, path: str | Path, error: Exception) -> LoadError:
    known = explain(error)
    if known and known[0].failure.victim:
        return verdict.lost(error)
    return verdict.fail(error, _unforeseen(str(path), error))


def _prepare(path: str | Path, model_class: Any, verify: str, kwargs: dict[str, Any]) -> _Plan:
    """All that can be told before anything is loaded. Raises LoadError."""
    if refused := [*_refusals(kwargs)]:
        raise LoadError(refused)
    variant = kwargs.get("variant")
    place = {name: kwargs[name] for name in hub.PLACE if name in kwargs}
    folder = hub.folder(path, variant, place)
    checkpoint = inspect_checkpoint(folder, variant=variant)
    refuse_unreadable(checkpoint)
    config = kwargs.get("config") or read_config(path, **place, trust_remote_code=kwargs.get("trust_remote_code"))
    overrides = {name: value for name, value in kwargs.items() if name not in ("config", *hub.PLACE) and hasattr(config, name)}
    if overrides:
        config = copy.deepcopy(config)
        for name, value in overrides.items():
            setattr(config, name, value)
    if verify == "none":
        return _Plan(checkpoint, concrete_class(model_class, config), None)
    if kwargs.get("quantization_config") is not None:
        raise LoadError([Finding("quantised", "quantization_config", "is given", cure_of("quantised"))])
    fit = check_checkpoint(checkpoint, model_class, config=config, key_mapping=kwargs.get("key_mapping"))
    if wrong := [problem for problem in fit.problems if not (problem.failure == "wrong-shape" and _ignores_shapes(kwargs))]:
        raise LoadError(wrong)
    return _Plan(checkpoint, concrete_class(model_class, config), fit)


def _ignores_shapes(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("ignore_mismatched_sizes"))


def _refusals(kwargs: dict[str, Any]) -> Iterator[Finding]:
    """What silently ruins a load, before one is tried."""
    import transformers

    def refused(failure: str, where: str, what: str) -> Finding:
        return Finding(failure, where, what, cure_of(failure))

    if ".dev" in transformers.__version__:
        yield refused("development-version", "transformers", f"is {transformers.__version__}, a development version")
    yield from ready.setting()
    if zero.is_asked_for():
        if _ignores_shapes(kwargs):
            yield refused("ignore-mismatched-sizes", "ignore_mismatched_sizes", "is True under ZeRO-3")
        for name in ("device_map", "low_cpu_mem_usage"):
            if kwargs.get(name):
                yield refused("device-map", name, f"is {kwargs[name]!r} under ZeRO-3")


def _verify(model: Any, info: dict[str, Any], plan: _Plan, verify: str) -> Iterator[Finding]:
    """What is wrong with a model that was loaded."""
    if plan.fit is None:
        return
    where = str(plan.checkpoint.path)
    skipped = {mismatch.name for mismatch in plan.fit.mismatched}
    if missing := sorted(set(info.get("missing_keys", ())) - compare.filled(model, plan.fit.plan) - skipped):
        what = f"transformers found nothing for {len(missing)} tensors ({shortened(missing)})"
        yield Finding("missing-key", where, what, cure_of("missing-key"))
    yield from ready.problems(model)
    for name, what in _wrong(model, plan, verify).items():
        if name not in skipped:
            yield Finding("wrong-bits" if "differs" in what else "wrong-shape", name, what, cure_of("wrong-bits"))


def _wrong(model: Any, plan: _Plan, verify: str) -> dict[str, str]:
    assert plan.fit is not None
    if verify == "bits":
        return compare.wrong_tensors(model, plan.checkpoint, plan.fit.plan)
    return compare.wrong_shapes(model, plan.checkpoint, plan.fit.plan)
