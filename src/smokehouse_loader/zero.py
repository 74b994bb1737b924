"""The state of ZeRO-3: whether it is requested, what part of a parameter a rank holds, and the gather race on gloo.

Imports neither DeepSpeed nor transformers' integration of it: where nothing else has imported them, ZeRO is not in use.
"""

import contextlib
import functools
import importlib.metadata
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

_INTEGRATION = "transformers.integrations.deepspeed"
_PARTITIONING = "deepspeed.runtime.zero.partition_parameters"
# The functions of deepspeed.comm that gather partitioned parameters.
GATHERS = ("all_gather_into_tensor", "all_gather")
# DeepSpeed PR #8539: `_allgather_params_coalesced` waits for every handle, not only for the last.
RACE_FIXED_IN = (0, 19, 8)


def config() -> Any:
    """Return the live HfDeepSpeedConfig, None if there is none."""
    reference = _reference()
    return None if reference is None else reference()


def config_was_dropped() -> bool:
    """Return whether a HfDeepSpeedConfig was created and garbage-collected since."""
    reference = _reference()
    return reference is not None and reference() is None


def _reference() -> Any:
    return getattr(sys.modules.get(_INTEGRATION), "_hf_deepspeed_config_weak_ref", None)


def is_requested() -> bool:
    """Return whether models are to be partitioned while they load: a HfDeepSpeedConfig of ZeRO-3 is alive."""
    live = config()
    return live is not None and bool(live.is_zero3())


def inside_init() -> bool:
    """Return whether this code runs inside a `deepspeed.zero.Init`."""
    return getattr(sys.modules.get(_PARTITIONING), "zero_init_context", 0) > 0


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hide the HfDeepSpeedConfig, so that models built in this context are not partitioned."""
    integration: Any = sys.modules.get(_INTEGRATION)
    if integration is None:
        yield
        return
    reference = _reference()
    live = config()  # keeps the config alive while it is hidden
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = reference
        del live


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Return whether ZeRO-3 has partitioned the parameter."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def partition_size(count: int, world_size: int) -> int:
    """Return how many of a parameter's `count` elements each rank has under ZeRO-3, including the padding on the last."""
    return math.ceil(count / world_size)


def local_partition(parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the elements of a parameter on this rank, flat and without padding, and the index of the first of them.

    The index counts elements of the whole parameter, flattened. A parameter that is not partitioned is returned whole.
    """
    if not is_partitioned(parameter):
        return parameter.detach().reshape(-1), 0
    partition: torch.Tensor = parameter.ds_tensor.detach().view(-1)
    count: int = parameter.ds_numel
    start = partition.numel() * int(dist.get_rank(getattr(parameter, "ds_process_group", None)))
    return partition[: max(0, min(partition.numel(), count - start))], start


def drop_copies(model: torch.nn.Module) -> None:
    """Drop the copies of a node that ZeRO++'s hpZ makes of each parameter; the next forward pass makes them again.

    A load writes to the partitions alone (DeepSpeed 0.15.4, `_partition`: `_partition_param_sec(param)` without
    `has_been_updated`), and the forward pass reads the copies: it would compute with the weights from before the load.
    """
    for parameter in model.parameters():
        if getattr(parameter, "ds_secondary_tensor", None) is not None:
            parameter.ds_secondary_tensor = None


def partition_count(parameter: torch.Tensor) -> int:
    """Return how many ranks a partitioned parameter is divided among."""
    return int(dist.get_world_size(getattr(parameter, "ds_process_group", None)))


def has_gloo_race() -> bool:
    """Return whether ZeRO-3 would read parameters before gloo has delivered them."""
    if not dist.is_initialized() or "gloo" not in str(dist.get_backend()):
        return False
    return _deepspeed_version() < RACE_FIXED_IN


@functools.cache  # a load requests it for each module, and each time all of a package's metadata are parsed
def _deepspeed_version() -> tuple[int, ...]:
    numbers = importlib.metadata.version("deepspeed").split("+")[0].split(".")[:3]
    return tuple(int(number) for number in numbers if number.isdecimal())


@contextlib.contextmanager
def changed_collectives(change: Callable[[Any], Any], *names: str) -> Iterator[None]:
    """Replace each of the named functions of deepspeed.comm by `change(function)`."""
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
    """Work around the race: wait for every gather before its handle is returned."""

    def waited(original: Any) -> Any:
        def gather(*args: Any, **kwargs: Any) -> Any:
            handle = original(*args, **kwargs)
            if handle is not None:
                handle.wait()
            return handle

        return gather

    return changed_collectives(waited, *GATHERS)


def safe_gathers() -> contextlib.AbstractContextManager[None]:
    """Return `waited_gathers()` if this stack has the race, a context without effect otherwise."""
    return waited_gathers() if has_gloo_race() else contextlib.nullcontext()


@contextlib.contextmanager
def whole_shapes() -> Iterator[None]:
    """Have transformers 5 compare a file's tensor with the whole parameter where it transposes those of another shape.

    It takes the shape of a partitioned parameter, which is [0], and transposes what is right as it is: the experts of a
    checkpoint that its own save_pretrained wrote.
    """
    core = sys.modules.get("transformers.core_model_loading")
    transpose: Any = getattr(core, "Transpose", None)
    if transpose is None:
        yield
        return
    original = transpose.convert

    def convert(self: Any, given: Any, source_patterns: Any, target_patterns: Any, **kwargs: Any) -> Any:
        if getattr(self, "check_dims", False):
            [tensors] = given.values()
            tensor = tensors[0] if isinstance(tensors, list) else tensors
            if tuple(tensor.shape) == full_shape(kwargs["model"].get_parameter(kwargs["full_layer_name"])):
                return {self.get_target_pattern(given, source_patterns, target_patterns): tensor}
        return original(self, given, source_patterns, target_patterns, **kwargs)

    transpose.convert = convert
    try:
        yield
    finally:
        transpose.convert = original
