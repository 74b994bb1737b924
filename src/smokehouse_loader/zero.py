"""ZeRO-3 as the loader meets it: who asked for it, what a rank holds of a parameter, and the race on gloo.

Imports neither DeepSpeed nor transformers' integration of it: where nobody else has, ZeRO is not in use.
"""

import contextlib
import importlib.metadata
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

_INTEGRATION = "transformers.integrations.deepspeed"
_PARTITIONING = "deepspeed.runtime.zero.partition_parameters"
# Those of deepspeed.comm with which partitioned parameters are gathered.
GATHERS = ("all_gather_into_tensor", "all_gather")
# DeepSpeed PR #8539: `_allgather_params_coalesced` waits for every handle, not only for the last.
RACE_FIXED_IN = (0, 19, 8)


def config() -> Any:
    """The live HfDeepSpeedConfig, None where there is none."""
    reference = _reference()
    return None if reference is None else reference()


def config_was_dropped() -> bool:
    """Whether a HfDeepSpeedConfig was made and, being referenced by nobody, is gone."""
    reference = _reference()
    return reference is not None and reference() is None


def _reference() -> Any:
    return getattr(sys.modules.get(_INTEGRATION), "_hf_deepspeed_config_weak_ref", None)


def is_asked_for() -> bool:
    """Whether models are to be partitioned while they load: a HfDeepSpeedConfig of ZeRO-3 is alive."""
    live = config()
    return live is not None and bool(live.is_zero3())


def inside_init() -> bool:
    """Whether this code runs inside a `deepspeed.zero.Init`."""
    return getattr(sys.modules.get(_PARTITIONING), "zero_init_context", 0) > 0


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Models that are built in here are not partitioned, whatever was asked for."""
    integration: Any = sys.modules.get(_INTEGRATION)
    if integration is None:
        yield
        return
    reference = _reference()
    live = config()  # alive for as long as it is hidden
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = reference
        del live


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Whether ZeRO-3 has taken the parameter."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def share(count: int, world_size: int) -> int:
    """How many of a parameter's `count` elements one rank holds under ZeRO-3; the last may hold fewer, then padding."""
    return math.ceil(count / world_size)


def held(parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The elements that this rank holds of a parameter, flat and without padding, and the place of the first in the whole."""
    if not is_partitioned(parameter):
        return parameter.detach().reshape(-1), 0
    partition: torch.Tensor = parameter.ds_tensor.detach().view(-1)
    count: int = parameter.ds_numel
    start = partition.numel() * _rank_among_holders(parameter)
    return partition[: max(0, min(partition.numel(), count - start))], start


def _rank_among_holders(parameter: torch.Tensor) -> int:
    return int(dist.get_rank(getattr(parameter, "ds_process_group", None)))


def holders(parameter: torch.Tensor) -> int:
    """Among how many ranks a partitioned parameter is shared."""
    return int(dist.get_world_size(getattr(parameter, "ds_process_group", None)))


def has_gloo_race() -> bool:
    """Whether ZeRO-3 would read parameters before gloo has delivered them."""
    if not dist.is_initialized() or "gloo" not in str(dist.get_backend()):
        return False
    numbers = importlib.metadata.version("deepspeed").split("+")[0].split(".")[:3]
    return tuple(int(number) for number in numbers if number.isdecimal()) < RACE_FIXED_IN


@contextlib.contextmanager
def changed_collectives(change: Callable[[Any], Any], *names: str) -> Iterator[None]:
    """DeepSpeed with each of these functions of deepspeed.comm replaced by what `change` makes of it."""
    import deepspeed.comm as comm

    originals = {name: getattr(comm, name) for name in names}
    for name, original in originals.items():
        setattr(comm, name, change(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(comm, name, original)


def waited_gathers() -> contextlib.AbstractContextManager[None]:
    """The workaround for the race: every gather is waited for before its handle is handed back."""

    def waited(original: Any) -> Any:
        def gather(*args: Any, **kwargs: Any) -> Any:
            handle = original(*args, **kwargs)
            if handle is not None:
                handle.wait()
            return handle

        return gather

    return changed_collectives(waited, *GATHERS)


def safe_gathers() -> contextlib.AbstractContextManager[None]:
    """`waited_gathers` where this stack needs it, nothing where it does not."""
    return waited_gathers() if has_gloo_race() else contextlib.nullcontext()
