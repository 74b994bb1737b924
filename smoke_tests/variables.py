"""Variables of a machine or cluster that change what a smoke test measures: which are cleared, and which only named."""

from collections.abc import Mapping

# Of accelerate's launcher, transformers and torch's logs: they choose precision, DeepSpeed's configuration, or what is printed.
# Python's turns warnings of libraries into errors.
CLEARED = ("ACCELERATE_", "TRANSFORMERS_", "TORCH_LOGS", "TORCHDYNAMO_", "TORCHINDUCTOR_", "PYTHONWARNINGS")
# A machine may need them: networks, allocators, precision of kernels, and what is loaded in front of every library.
NAMED = (
    *("NCCL_", "TORCH_NCCL_", "GLOO_", "CUBLAS_", "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE", "PYTORCH_"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_DISTRIBUTED_DEBUG", "DS_", "DEEPSPEED_", "LD_PRELOAD", "MALLOC_"),
)
# Where files are, and what the smoke test sets itself.
_PLACES = (
    *("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TORCHINDUCTOR_CACHE_DIR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "DS_ACCELERATOR"),
)


def foreign(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of those in `environ`: what is to be `cleared`, and what is `kept`."""
    names = sorted({*environ} - {*_PLACES})
    cleared = [name for name in names if name.startswith(CLEARED)]
    return {"cleared": cleared, "kept": [name for name in names if name.startswith(NAMED)]}
