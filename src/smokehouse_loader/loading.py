"""Load a checkpoint correctly, or refuse it on every rank: `load_model`."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smokehouse_loader import buffers, compare, denoisers, hub, keys, ready, signature, zero
from smokehouse_loader.checkpoint import Checkpoint, inspect_checkpoint
from smokehouse_loader.consensus import Consensus
from smokehouse_loader.diagnosis import explain
from smokehouse_loader.errors import Finding, LoadError, first_line, shortened
from smokehouse_loader.failures import fix_for
from smokehouse_loader.fit import Fit, check_checkpoint, refuse_unreadable, required
from smokehouse_loader.model_class import concrete_class, read_config

# Arguments of from_pretrained that replace the checkpoint's files as the source of weights: nothing could be compared.
_OTHER_SOURCES = ("from_flax", "from_tf", "gguf_file", "state_dict")


@dataclass(frozen=True)
class _Plan:
    """What to load, and how."""

    checkpoint: Checkpoint
    model_class: Any
    fit: Fit | None  # None if nothing is verified


def load_model(
    path: str | Path,
    *,
    model_class: Any = None,
    verify: Literal["shapes", "bits", "signature", "none"] = "shapes",
    signer: signature.Signer | None = None,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint as from_pretrained does, or raise the same LoadError on every rank.

    `path` is a directory or a name on a hub, `model_class` a transformers class (or one with its from_pretrained) or None for
    what `resolve_model_class` finds; `kwargs` are from_pretrained's. Under ZeRO-3 a denoiser, too, is loaded into partitions,
    whose own from_pretrained would load all of it on every rank. Works in plain, ZeRO-2 and ZeRO-3 runs; in a process group
    every rank has to call it.

    Checks the headers of the checkpoint against the class before it allocates memory, loads, then verifies: "shapes" that
    every parameter has the shape in the file and is partitioned if and only if ZeRO-3 is requested; "bits" also every bit on
    this rank; "signature" also that the files are the ones that `signer` signed, before anything of them is read; "none" skips
    both the check and the verification. While loading on gloo, waits for gathers if DeepSpeed does not; under ZeRO-3 also loads
    buffers, which transformers before 5.6 does on rank 0 at most.

    Returns the model, or from_pretrained's pair with `output_loading_info=True`. Raises LoadError, whose findings give the
    rank that found them, and ValueError for arguments that cannot be verified.
    """
    if verify not in ("shapes", "bits", "signature", "none"):
        raise ValueError(f"verify: expected 'shapes', 'bits', 'signature' or 'none', found {verify!r}; use one of them")
    if (verify == "signature") != (signer is not None):
        given = "a signer with verify='signature', and only then"
        raise ValueError(f"signer: expected {given}, found {signer!r}; pass both, or neither")
    if others := [name for name in _OTHER_SOURCES if kwargs.get(name)]:
        raise ValueError(f"{others[0]}: expected weights from {path} alone, found another source; use from_pretrained for it")
    _join()
    consensus = Consensus()
    plan, findings = _caught(lambda: _prepare(path, model_class, verify, signer, kwargs))
    consensus.agree(findings)
    with_info = bool(kwargs.pop("output_loading_info", False))
    try:
        with contextlib.ExitStack() as workarounds:
            if zero.is_requested():
                workarounds.enter_context(zero.safe_gathers())
                workarounds.enter_context(zero.whole_shapes())
            model, info = _load(plan, path, kwargs)
    except Exception as error:
        raise _failure(consensus, path, error) from error
    wrong, findings = _caught(lambda: [*_completed(model, info, plan, verify, kwargs.get("key_mapping"))])
    consensus.agree([*(wrong or ()), *findings])
    zero.drop_copies(model)
    if plan.fit is not None:
        ready.ORIGINS[model] = ready.Origin(plan.checkpoint, plan.fit.plan, plan.fit.tied)
    return (model, info) if with_info else model


def _load(plan: _Plan, path: str | Path, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the model and transformers' loading info, or for a denoiser the like."""
    if denoisers.read_config(plan.checkpoint.path) is not None:
        return denoisers.load(plan.model_class, plan.checkpoint, **kwargs)
    model, info = plan.model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    return model, info


def _join() -> None:
    """Join the process group now; DeepSpeed would do it in the middle of the load."""
    import torch.distributed as dist

    if zero.is_requested() and not dist.is_initialized():
        import deepspeed

        deepspeed.init_distributed()


def _caught(work: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    """Return the result of `work`, or None and what it raised as findings: an exception on one rank would block the others."""
    try:
        return work(), []
    except LoadError as refused:
        return None, list(refused.findings)
    except Exception as error:  # noqa: BLE001 - whatever one rank raises, the others must learn of
        return None, [_unexpected("the load", error)]


def _unexpected(where: str, error: Exception) -> Finding:
    known = explain(error)
    failure = known[0].failure.name if known else "unmeasured"
    return Finding(failure, where, first_line(error), fix_for(failure))


def _failure(consensus: Consensus, path: str | Path, error: Exception) -> LoadError:
    """Return the error to raise on this rank for an `error` of from_pretrained."""
    known = explain(error)
    if known and known[0].failure.victim:
        return consensus.lost(error)
    return consensus.failed(_unexpected(str(path), error))


def _prepare(path: str | Path, model_class: Any, verify: str, signer: signature.Signer | None, kwargs: dict[str, Any]) -> _Plan:
    """Check everything that can be checked before the load. Raises LoadError."""
    if refused := [*_refusals(kwargs)]:
        raise LoadError(refused)
    if signer is not None:
        _require_signature(path, signer)
    variant = kwargs.get("variant")
    source = {name: kwargs[name] for name in hub.SOURCE_OPTIONS if name in kwargs}
    folder = hub.folder(path, variant, source)
    checkpoint = inspect_checkpoint(folder, variant=variant)
    refuse_unreadable(checkpoint)
    # AutoConfig finds what it was given a name of; a denoiser's config is read from what was fetched.
    place: tuple[Any, dict[str, Any]] = (path, source) if denoisers.read_config(folder) is None else (folder, {})
    config = kwargs.get("config") or read_config(place[0], **place[1], trust_remote_code=kwargs.get("trust_remote_code"))
    if isinstance(config, denoisers.Config) and (refused := [*denoisers.refusals(kwargs)]):
        raise LoadError(refused)
    not_overrides = ("config", *hub.SOURCE_OPTIONS)
    if overrides := {name: value for name, value in kwargs.items() if name not in not_overrides and hasattr(config, name)}:
        config = copy.deepcopy(config)
        for name, value in overrides.items():
            setattr(config, name, value)
    if verify == "none":
        return _Plan(checkpoint, concrete_class(model_class, config), None)
    if kwargs.get("quantization_config") is not None:
        what = "quantised weights cannot be verified"
        raise LoadError([Finding("quantised", "quantization_config", what, fix_for("quantised"))])
    fit = check_checkpoint(checkpoint, model_class, config=config, key_mapping=kwargs.get("key_mapping"))
    if wrong := [problem for problem in fit.problems if not (problem.failure == "wrong-shape" and _ignores_shapes(kwargs))]:
        raise LoadError(wrong)
    return _Plan(checkpoint, concrete_class(model_class, config), fit)


def _require_signature(path: str | Path, signer: signature.Signer) -> None:
    """Raise LoadError unless the files in `path` are those that `signer` signed; one rank of a machine reads them."""
    if not Path(path).is_dir():
        fix = "download the whole checkpoint into a directory, and pass that"
        raise LoadError([Finding("signature-mismatch", str(path), "expected a directory for verify='signature'", fix)])
    if signature.reads_here() and (wrong := [*signature.problems(Path(path), signer)]):
        raise LoadError(wrong)


def _ignores_shapes(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("ignore_mismatched_sizes"))


def _refusals(kwargs: dict[str, Any]) -> Iterator[Finding]:
    """Yield what would break a load without an error."""
    import transformers

    def refused(failure: str, where: str, what: str) -> Finding:
        return Finding(failure, where, what, fix_for(failure))

    if ".dev" in transformers.__version__:
        yield refused("development-version", "transformers", f"expected a release, found {transformers.__version__}")
    yield from ready.process_problems()
    if zero.is_requested():
        if _ignores_shapes(kwargs):
            yield refused("ignore-mismatched-sizes", "ignore_mismatched_sizes", "expected False under ZeRO-3, found True")
        for name in ("device_map", "low_cpu_mem_usage"):
            if kwargs.get(name):
                yield refused("device-map", name, f"expected none under ZeRO-3, found {kwargs[name]!r}")


def _completed(
    model: Any, info: dict[str, Any], plan: _Plan, verify: str, key_mapping: Mapping[str, str] | None
) -> Iterator[Finding]:
    """Load what transformers leaves out, then yield what is wrong with the model."""
    if zero.is_requested() and not getattr(model, "is_quantized", False):
        how = plan.fit.plan if plan.fit else keys.plan(model, plan.checkpoint.tensors, key_mapping)
        buffers.load(model, plan.checkpoint, how)
    yield from _verify(model, info, plan, verify)


def _verify(model: Any, info: dict[str, Any], plan: _Plan, verify: str) -> Iterator[Finding]:
    """Yield what is wrong with a loaded model."""
    if plan.fit is None:
        return
    skipped = {mismatch.name for mismatch in plan.fit.mismatched}
    lacking = set(info.get("missing_keys", ())) - compare.filled(model, plan.fit.plan) - skipped
    if missing := sorted(required(model, [*lacking])):
        what = f"transformers loaded nothing into {len(missing)} tensors ({shortened(missing)})"
        yield Finding("missing-key", str(plan.checkpoint.path), what, fix_for("missing-key"))
    yield from ready.problems(model)
    compared = compare.wrong_tensors if verify in ("bits", "signature") else compare.wrong_shapes
    for name, what in compared(model, plan.checkpoint, plan.fit.plan).items():
        if name in skipped:
            continue
        other = _tied_to(name, plan.fit)
        if "differs" not in what:
            yield Finding("wrong-shape", name, what, fix_for("wrong-shape"))
        elif other:
            what = f"{what}: the model ties it to {other}, the file has other values for that one"
            yield Finding("tied-weights-differ", name, what, fix_for("tied-weights-differ"))
        else:
            yield Finding("wrong-bits", name, what, fix_for("wrong-bits"))


def _tied_to(name: str, fit: Fit) -> str | None:
    """Return another tensor of the file that the model ties to `name`, None if there is none."""
    others = (other for names in fit.tied if name in names for other in names if other != name)
    return next((other for other in others if other in fit.plan.renamed), None)
