"""Set CUDA_HOME where GPUs are and nvcc is not: a .pth file runs this at every start of Python in an environment.

DeepSpeed before 0.19.8 asks `CUDA_HOME/bin/nvcc` for its release when it is imported on a machine with GPUs, and raises where
it finds none (DeepSpeed issue 7452, fixed by its PR 8216). bin/nvcc beside this file answers that one question. A toolkit of
the user or the environment is used in its place; without a GPU nothing is set.
"""

import os


def _has_nvcc(home: str) -> bool:
    nvcc = os.path.join(home, "bin", "nvcc")
    return os.path.isfile(nvcc) and os.access(nvcc, os.X_OK)


def choose(environ: "os._Environ[str] | dict[str, str]", prefix: str, standard: str = "/usr/local/cuda") -> "str | None":
    """Return the CUDA_HOME to set for the environment in `prefix`, None where torch finds a toolkit by itself.

    In this order: what the user set, the environment's own toolkit, that on PATH, `standard`, and the answer beside this file.
    """
    given = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if given and _has_nvcc(given):
        return None
    if _has_nvcc(prefix):
        return prefix
    # torch looks there as well, unless CUDA_HOME is set, to a folder with libraries only for example.
    folders = environ.get("PATH", "").split(os.pathsep)
    for home in [*(os.path.dirname(folder) for folder in folders if os.path.basename(folder) == "bin"), standard]:
        if _has_nvcc(home):
            return home if given else None
    return os.path.dirname(os.path.abspath(__file__))


def has_gpu(devices: str) -> bool:
    """Return whether the folder `devices` has a driver's device: NVIDIA's, or Windows' for WSL2."""
    return any(os.path.exists(os.path.join(devices, name)) for name in ("nvidiactl", "nvidia0", "dxg"))


def _set() -> None:
    import sys

    if has_gpu(os.environ.get("SMOKEHOUSE_DEV", "/dev")) and (home := choose(os.environ, sys.prefix)):
        os.environ["CUDA_HOME"] = home


_set()
