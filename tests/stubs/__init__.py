"""Stub libraries of NVML and CUDA, with which the real torch of an environment sees GPUs on a machine without a driver.

`build` compiles them, and `environ` says what they answer. Devices can be counted and asked, and never used: whatever would
start work on one fails. Each process that starts CUDA is listed in a file.
"""

import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
_LIBRARIES = {"libnvidia-ml.so.1": "nvml.c", "libcuda.so.1": "cuda.c"}
_DEADLINE = 60.0  # seconds


def build(folder: Path) -> Path:
    """Compile the stubs into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for library, source in _LIBRARIES.items():
        command = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", "-o", folder / library, _HERE / source, "-ldl"]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=_DEADLINE)
    return folder


def environ(
    libraries: Path,
    *,
    gpus: int = 1,
    capability: str = "9.0",
    driver: str = "550.54.14",
    cuda: int = 12040,
    nvml: bool = True,
    libcuda: bool = True,
    made: Path | None = None,
    **more: object,
) -> dict[str, str]:
    """Return the environment variables under which programs see `gpus` GPUs of compute `capability`, one for all or a list.

    `cuda` is the CUDA release of the driver, 1000 * major + 10 * minor. Without `nvml` or `libcuda` that library is not
    found. In a container, `libraries` is the path there, and `made` that here. `more` are other variables of the stubs, in
    lower case without STUB_: nvml_error, cuda_error (of cuInit), name, memory_mib, used_mib, mig (0 or 1), slice_mib,
    compute_mode, processes, topology (level), p2p (status), nvlinks (one for all or a list), nvlinks_of_card, nvlink_version,
    pcie_generation, pcie_lanes, pcie_most_lanes, ecc (errors), remap_pending, remap_failed, recovery (action), throttled
    (reasons), full (1: memory cannot be allocated), starts (the file that lists processes that start CUDA).
    """
    given = {"gpus": gpus, "capability": capability, "driver": driver, "cuda": cuda, **more}
    found = {f"STUB_{name.upper()}": str(value) for name, value in given.items()}
    chosen = [name for name, wanted in (("libnvidia-ml.so.1", nvml), ("libcuda.so.1", libcuda)) if wanted]
    folder = "-".join(["with", *chosen])
    links = (made or libraries) / folder
    links.mkdir(exist_ok=True)
    for name in chosen:
        if not (links / name).is_symlink():
            (links / name).symlink_to(Path("..", name))
            (links / name.removesuffix(".1")).symlink_to(name)  # triton links with -lcuda
    found |= {"LD_LIBRARY_PATH": str(libraries / folder), "TRITON_LIBCUDA_PATH": str(libraries / folder)}
    return found | ({"LD_PRELOAD": str(libraries / "libcuda.so.1")} if libcuda else {})
