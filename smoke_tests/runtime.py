"""How torch and DeepSpeed are initialised on this machine: the workarounds for each version, each in one place.

Every figure and failure here was measured; see the known issues of the environment.
"""

import contextlib
import datetime
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from packaging.version import Version

from smoke_tests.families import Family
from smokehouse_loader import zero

# A function of deepspeed.comm; asynchronous calls return a handle to wait for.
Collective = Callable[..., Any]
# transformers renamed the argument of `from_pretrained`; 5.x still accepts the old name, with a warning.
DTYPE_ARGUMENT_SINCE = Version("4.56")


@functools.cache  # parsing a package's metadata takes as long as a small forward pass
def installed(package: str) -> Version:
    """Return the version of an installed package."""
    return Version(importlib.metadata.version(package))


def choose_device(requested: str, gpus: int) -> str:
    """Return `cuda` or `cpu` for `auto`, `cuda` or `cpu` on a machine with `gpus`. Does not initialise CUDA."""
    if requested == "auto":
        return "cuda" if gpus and torch.version.cuda else "cpu"
    return requested


def choose_accelerator(device: str) -> None:
    """Set the accelerator that DeepSpeed will use. Call it before any import of transformers or DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Both import triton if they can; without a GPU driver DeepSpeed's kernels then raise "0 active drivers ([])".
        sys.modules["triton"] = None  # type: ignore[assignment]


def import_deepspeed(device: str) -> None:
    """Import DeepSpeed so that it compiles nothing."""
    if device == "cpu":
        # `device_count()` runs `numactl --hardware` where LOCAL_SIZE is not set.
        os.environ["LOCAL_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", "1")
    logging.disable(logging.INFO)  # it logs to standard output
    importlib.import_module("deepspeed")
    logging.disable(logging.NOTSET)
    _import_muon()
    if device == "cpu":
        # Its JIT build takes half a minute, and a killed build leaves a lock file on which later runs hang. From 0.19 on,
        # DeepSpeed does not find out on import what it can build; it must not later either, as it starts compilers for that.
        importlib.import_module("deepspeed.ops").__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    trust_own_checkpoints()


def import_model_code(family: Family) -> None:
    """Import what every rank uses of the model's package, once, before ranks are forked."""
    of_tokens = () if family.denoiser else (family.auto_class, "AutoProcessor", "AutoTokenizer")
    for name in (family.model_class, *of_tokens):
        getattr(importlib.import_module(family.package), name)
    for module in (*family.modules, *(() if family.denoiser else ("transformers.generation",)), "safetensors.torch"):
        importlib.import_module(module)


def quieten(family: Family) -> None:
    """Have the packages that load models of `family` draw no progress bars into a rank's log."""
    for package in dict.fromkeys(("transformers", family.package)):
        importlib.import_module(f"{package}.utils.logging").disable_progress_bar()


def import_engine_code() -> None:
    """Import what every rank uses of DeepSpeed's engines and torchrun's agent."""
    for module in (
        "torch.distributed.launcher.api",
        "deepspeed.runtime.zero.stage3",
        "deepspeed.runtime.bf16_optimizer",
        "deepspeed.utils.zero_to_fp32",
        "transformers.integrations.deepspeed",
    ):
        importlib.import_module(module)


def _import_muon() -> None:
    """Import DeepSpeed's Muon, which in later versions the first engine does that a process starts, whatever its optimizer.

    It decorates a function with `torch.compile`, for which torch imports its compiler: a second of CPU in each rank. No
    check uses Muon, so that function may stay as it is written.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("deepspeed.runtime.zero.muon"):
            raise
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def import_trainer() -> None:
    """Import Hugging Face's Trainer, which takes seconds."""
    importlib.import_module("transformers.trainer")


def trust_own_checkpoints() -> None:
    """Let torch 2.6's `weights_only` loading read the classes in DeepSpeed's engine checkpoints."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # What a member of an enum is pickled with: getattr before Python 3.11.4, as in Debian 12, and its class since.
    enum = ZeroStageEnum.weights.__reduce_ex__(2)[0]
    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, enum, fragment_address])


def choose_gpu(gpus: int) -> None:
    """Set this rank's GPU, one of the first `gpus`, by its number among the machine's ranks; ranks share where there are fewer.

    DeepSpeed and `zero.Init` take LOCAL_RANK for the number of the GPU, so it has to be one. Initialises CUDA. What torch
    counts may be more: with MIG it counts cards, of which CUDA gives a program one slice.
    """
    local = int(os.environ["LOCAL_RANK"]) % gpus
    os.environ["LOCAL_RANK"] = str(local)
    torch.cuda.set_device(local)


def init_distributed(backend: str, timeout: float) -> None:
    """Join the process group that torchrun's agent describes in the environment; collectives fail after `timeout` seconds."""
    import deepspeed

    limit = datetime.timedelta(seconds=timeout)
    # `init_distributed(timeout=)` does not reach the group that DeepSpeed clones, 30 minutes by default.
    torch.distributed.distributed_c10d.default_pg_timeout = limit
    torch.distributed.distributed_c10d.default_pg_nccl_timeout = limit
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=limit, verbose=False)


class _LateGather:
    """The handle of a gather that begins only when it is waited for."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        """Take the function that begins the gather."""
        self._begin: Callable[[], Any] | None = begin

    def wait(self, *_: Any, **__: Any) -> None:
        """Gather now, unless that was done before."""
        if self._begin is not None:
            begin, self._begin = self._begin, None
            begin().wait()


@contextlib.contextmanager
def late_gathers() -> Iterator[None]:
    """Lose the gloo race every time: gathers that nobody waits for arrive when rank 0 has read the file and broadcasts it."""
    pending: list[_LateGather] = []

    def late(original: Collective) -> Collective:
        def gather(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.get("async_op"):
                return original(*args, **kwargs)
            pending.append(_LateGather(functools.partial(original, *args, **kwargs)))
            return pending[-1]

        return gather

    def after_gathers(original: Collective) -> Collective:
        def broadcast(*args: Any, **kwargs: Any) -> Any:
            while pending:
                pending.pop(0).wait()
            return original(*args, **kwargs)

        return broadcast

    with zero.changed_collectives(late, *zero.GATHERS), zero.changed_collectives(after_gathers, "broadcast"):
        yield


def in_precision(dtype: torch.dtype, package: str = "transformers") -> dict[str, torch.dtype]:
    """Return the argument with which `from_pretrained` of a package loads a model in `dtype`."""
    renamed = package == "transformers" and installed(package) >= DTYPE_ARGUMENT_SINCE
    return {"dtype" if renamed else "torch_dtype": dtype}


def config(stage: int, world_size: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return the DeepSpeed configuration of every engine; nothing in it is `auto` or left to a version's default."""
    # Elements. A CPU trains the synthetic model alone, and zeroing larger buffers is a twentieth of a run's CPU time.
    bucket = 5_000_000 if device == "cuda" else 500_000
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        # The default went from 0 to 1.0 between 0.19.0 and 0.19.4.
        "gradient_clipping": 0.0,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": device == "cuda",  # with streams, which a CPU lacks: it would only hold a second buffer
            "reduce_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_gather_16bit_weights_on_model_save": True,
            # 0 keeps every parameter partitioned, so that a rank's share can be counted to the element.
            "stage3_param_persistence_threshold": 0,
        },
    }


def shipped_config(stage: int, *, torch_adam: bool) -> dict[str, Any]:
    """Return a configuration for Hugging Face's Trainer as VLM-R1 and TRL ship theirs: `auto` where the Trainer knows better.

    `torch_adam` has DeepSpeed use torch's AdamW in place of its own, which is an op to compile.
    """
    automatic = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    of_stage: dict[int, dict[str, Any]] = {
        2: {"allgather_partitions": True, "allgather_bucket_size": 2e8, "reduce_scatter": True},
        3: {
            "sub_group_size": 1e9,
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }
    return {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {**automatic, **({"torch_adam": True} if torch_adam else {})}},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            **of_stage[stage],
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def offloaded(config: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's configuration with the optimizer, and under ZeRO-3 the parameters, in host memory."""
    host = {"device": "cpu", "pin_memory": False}
    zero_optimization = config["zero_optimization"] | {"offload_optimizer": host}
    if zero_optimization["stage"] == 3:
        zero_optimization |= {"offload_param": host}
    return config | {"zero_optimization": zero_optimization}


def op_builder(name: str) -> Any:
    """Return the builder of the op `name` for DeepSpeed's accelerator."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().create_op_builder({"cpu_adam": "CPUAdamBuilder", "fused_adam": "FusedAdamBuilder"}[name])


def gpu_uuid() -> str | None:
    """Return the UUID of this process's GPU as NVML has it, None where torch does not know it."""
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


def cudnn_version(number: int | None) -> str | None:
    """Return the version that torch has as one number: 8902 is 8.9.2, and from 9 on 91002 is 9.10.2."""
    if number is None:
        return None
    major = 10000 if number >= 90000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def versions(device: str) -> dict[str, str | None]:
    """Return the versions of what was imported, and the GPU that it runs on."""
    import platform

    import deepspeed
    import transformers
    from deepspeed.git_version_info import installed_ops

    ahead = sorted(name for name, installed in installed_ops.items() if installed)
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
        # Each rank compiles the others itself, when it first uses them.
        "deepspeed_ops_ahead_of_time": ", ".join(ahead) or "none",
        "cuda": torch.version.cuda,
        "kernel": platform.release(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found |= {
            "gpu": f"{torch.cuda.get_device_name()} (sm_{major}{minor})",
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": cudnn_version(torch.backends.cudnn.version()),
        }
    return found
