"""Load denoisers, which are models of diffusers: from_pretrained there knows nothing of ZeRO-3.

A pipeline of diffusers has its denoiser in a folder of its own, such as `transformer`, whose config.json has the name of a
class in place of a model type. Measured with diffusers 0.42.1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse_loader import compare, config_files, hub, keys, zero
from smokehouse_loader.checkpoint import Checkpoint
from smokehouse_loader.errors import Finding, LoadError, clipped
from smokehouse_loader.failures import fix_for
from smokehouse_loader.safetensors_header import BadFileError

# The arguments of from_pretrained that mean the same where the loader fills partitions itself.
_UNDERSTOOD = {
    *hub.SOURCE_OPTIONS,
    *("config", "dtype", "output_loading_info", "torch_dtype", "trust_remote_code", "use_safetensors", "variant"),
}
_PART = 2**30  # bytes of parameters that a rank has whole at a time


@dataclass(frozen=True)
class Config:
    """The content of a denoiser's config.json."""

    content: Mapping[str, Any]

    @property
    def class_name(self) -> str:
        """The name of its class in diffusers."""
        return str(self.content[config_files.CLASS_NAME])


def read_config(folder: Path) -> Config | None:
    """Return the config of the denoiser in `folder`, None where that is no folder, or of another model."""
    try:
        content = config_files.read_object(folder / "config.json")
    except BadFileError:
        return None
    return Config(content) if config_files.is_of_denoiser(content) else None


def is_denoiser(model: Any) -> bool:
    """Return whether `model` is of diffusers, whatever wraps its class."""
    return any(base.__module__.partition(".")[0] == "diffusers" for base in type(model).__mro__)


def class_of(model_class: Any, config: Config) -> Any:
    """Return the class of diffusers that `model_class` stands for: a class, the name of one, or None for that of the config.

    Raises LoadError if diffusers is not installed or has no such class.
    """
    try:
        import diffusers
    except ImportError as absent:
        what = f"expected a config of transformers, found one of diffusers ({clipped(config.class_name)}), not installed"
        fix = "install diffusers, or load it with diffusers elsewhere"
        raise LoadError([Finding("not-a-checkpoint", "config.json", what, fix)]) from absent
    found = config.class_name if model_class is None else model_class
    if isinstance(found, str):
        name, found = found, getattr(diffusers, found, None)
        if found is None:
            what = f"diffusers {diffusers.__version__} has no class {clipped(repr(name))}"
            raise LoadError([Finding("no-model-class", "config.json", what, "install the diffusers that the model needs")])
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        what = f"expected a model of diffusers for {clipped(config.class_name)}, found {getattr(found, '__name__', found)!r}"
        raise LoadError([Finding("no-model-class", "model_class", what, fix_for("no-model-class"))])
    return found


def refusals(kwargs: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield arguments of from_pretrained that mean nothing where the loader fills partitions itself, under ZeRO-3."""
    for name, value in kwargs.items():
        if zero.is_requested() and value is not None and name not in _UNDERSTOOD:
            what = "expected arguments that a denoiser can be loaded with under ZeRO-3, found another"
            yield Finding("unmeasured", name, what, "leave it out")


def load(model_class: Any, checkpoint: Checkpoint, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Load a denoiser as from_pretrained does, or under ZeRO-3 into the partitions of each rank; return it and loading info.

    diffusers itself would load all of it on every rank. Here a rank has at most a gibibyte of it whole at a time, and rank 0
    alone reads the file. `kwargs` are from_pretrained's, of which `refusals` found none that is not understood.
    """
    if not zero.is_requested():
        options = {name: value for name, value in kwargs.items() if name not in hub.SOURCE_OPTIONS}  # it was fetched
        model, info = model_class.from_pretrained(checkpoint.path, output_loading_info=True, **options)
        return model, info
    import accelerate
    import torch

    config = read_config(checkpoint.path)
    if config is None:
        raise ValueError(f"{checkpoint.path}/config.json: changed while it was loaded; stop what writes to it")
    # Not inside zero.Init, which rounds what a model computes while it is built, such as the frequencies of its positions.
    with accelerate.init_empty_weights():
        model = model_class.from_config(dict(config.content))
    plan = keys.plan(model, checkpoint.tensors)
    # All in one precision: an engine refuses a model that has parameters in another one than its own.
    _fill(model, checkpoint, plan, kwargs.get("torch_dtype") or kwargs.get("dtype") or torch.float32)
    model.eval()
    missing = sorted(model.state_dict().keys() - plan.renamed.keys())
    return model, {"missing_keys": missing, "unexpected_keys": plan.unmatched, "mismatched_keys": [], "error_msgs": []}


def _fill(model: Any, checkpoint: Checkpoint, plan: keys.Plan, dtype: Any) -> None:
    """Give a model on the meta device the file's tensors, a part at a time: rank 0 reads, and each rank keeps its partition.

    What rank 0 cannot read it raises at the end: in the middle the others would wait for it.
    """
    import torch
    import torch.distributed as dist

    problem: Exception | None = None
    with compare.Reader(checkpoint) as reader, torch.no_grad():

        def read(tensor: torch.Tensor, name: str) -> None:
            nonlocal problem
            try:
                tensor.copy_(reader.whole(plan.renamed[name]))
            except (OSError, RuntimeError) as error:
                problem = problem or error

        buffers = dict(model.named_buffers())
        for name in buffers.keys() & plan.renamed.keys():
            read(buffers[name], name)
        for names in _parts(model, plan, dtype):
            part = torch.nn.ParameterDict()
            for number, name in enumerate(names):
                module_name, _, own = name.rpartition(".")
                module = model.get_submodule(module_name)
                old = module.get_parameter(own)
                parameter = torch.nn.Parameter(torch.empty_like(old, dtype=dtype, device="cpu"), old.requires_grad)
                if dist.get_rank() == 0:
                    read(parameter, name)
                setattr(module, own, parameter)
                part[str(number)] = parameter
            _partition(part)
    if problem is not None:
        raise problem


def _parts(model: Any, plan: keys.Plan, dtype: Any) -> Iterator[list[str]]:
    """Yield the names of the parameters that the file has, in parts of up to `_PART` bytes, or of one larger tensor."""
    part: list[str] = []
    room = _PART
    for name, parameter in model.named_parameters():
        if name not in plan.renamed:
            continue
        size = parameter.numel() * dtype.itemsize
        if part and size > room:
            yield part
            part, room = [], _PART
        part.append(name)
        room -= size
    if part:
        yield part


def _partition(part: Any) -> None:
    """Partition the parameters of `part`, of which rank 0 has the values.

    The whole configuration is passed: offload and hpZ are DeepSpeed's to do.
    """
    import deepspeed

    deepspeed.zero.Init(module=part, config_dict_or_path=zero.config().config)
