"""What is checked and prepared before the first rank starts. Imports torch only when it is called."""

import contextlib
import ctypes
import errno
import gc
import importlib
import os
import platform
import re
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoke_tests import families, legs, needs, variables
from smoke_tests import options as options_module
from smoke_tests.legs import Leg
from smoke_tests.machine import Situation, Visible, cgroup, evidence, findings, software, visible_gpus
from smoke_tests.options import InputError, Options
from smoke_tests.outcome import one_line
from smoke_tests.ranks import transport
from smokehouse_loader import explain, inspect_checkpoint

PREFLIGHT = "python -m smoke_tests preflight"
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Resources:
    """What a run has."""

    device: str  # cpu | cuda
    legs: tuple[Leg, ...]  # on which the ZeRO jobs run
    timeout: float  # seconds that a check may take
    source: Path | None  # the folder of the requested checkpoint; None for the synthetic one


def _clear_variables() -> dict[str, list[str]]:
    found = variables.foreign(os.environ)
    cleared, kept = found["cleared"], found["kept"]
    for name in cleared:
        del os.environ[name]
    if sys.warnoptions:  # of PYTHONWARNINGS and -W, which processes that are started fresh would inherit
        sys.warnoptions.clear()
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # Python's defaults
    for names, what in ((cleared, "cleared, since they change what is measured"), (kept, "kept, and may change the outcome")):
        if names:
            print(f"smoke: warning: {', '.join(names)}: {what}", flush=True)
    return found


def use_network(host: str) -> None:
    """Have gloo and NCCL connect over the interface of this node's address `host`, unless a cluster's variables say which."""
    if interface := transport.interface_of(host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def preload(options: Options, device: str, start: str, *, trainer: bool) -> None:
    """Import what the ranks of a node without a supervisor share, as `check` and `smoke` do on node 0. Raises InputError."""
    if start == "spawn":
        return
    with importing("torch"):
        import torch

    from smoke_tests import runtime

    torch.set_num_threads(1)
    runtime.choose_accelerator(device)
    with importing("transformers"):
        runtime.import_model_code(families.get(options.stack["model"]["family"]))
    import_for_ranks(device, trainer=trainer)


def import_for_ranks(device: str, *, trainer: bool) -> None:
    """Import DeepSpeed and what else forked ranks share. Raises InputError."""
    from smoke_tests import runtime

    with importing("deepspeed"):
        runtime.import_deepspeed(device)
        runtime.import_engine_code()
        if trainer:
            runtime.import_trainer()
    gc.freeze()  # a collection in a rank would touch, and so copy, every page it shares with this process


def prepare_process(*, offline: bool, several_nodes: bool = False) -> dict[str, list[str]]:
    """Set the environment variables that torch and other libraries read when they are imported.

    Returns those that were `cleared`, because they change what is measured, and those that may and were `kept`.
    """
    found = _clear_variables()
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # looks for GPUs without initialising CUDA, which does not survive a fork
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS, so that a resumed run can be compared
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not several_nodes:
        # gloo would look up the machine's name, NCCL take the first network card. What a cluster has set is for its network.
        os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    # torchrun's own default. More would make the forked ranks hang: OpenMP's threads do not survive a fork.
    os.environ["OMP_NUM_THREADS"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.suppress(AttributeError, OSError):
        # Return freed tensors to the allocator, not to the kernel: page faults are a third of a small run's time.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return found


def check(options: Options, work: Path) -> Resources:
    """Import torch and transformers, fetch the requested checkpoint, and refuse what this machine cannot run.

    Raises:
        InputError: There are too few GPUs or too little memory or disk, the port is in use, the checkpoint is unusable, or
            the machine lacks what a run needs (see smoke_tests.machine).
    """
    print(f"smoke: {options.environment}, importing torch, transformers and deepspeed …", flush=True)
    with importing("torch"):
        import torch

    from smoke_tests import runtime

    torch.set_num_threads(1)
    visible = Visible(()) if options.device == "cpu" else visible_gpus()
    gpus = len(visible.gpus)
    device = runtime.choose_device(options.device, gpus)
    check_machine(options, device, visible)
    runtime.choose_accelerator(device)
    with importing("transformers"):
        importlib.import_module("transformers")  # before the fork, so that no rank has to

    family = families.get(options.stack["model"]["family"])
    source = _source(options.checkpoint, family)
    chosen = legs.choose(device, gpus, options.backend, options.processes)
    chosen = _without_sharing(chosen, visible)
    if options.nodes > 1:
        chosen = (chosen[0].over(options.nodes),)  # over nodes NCCL has several ranks, also with one GPU on each
    parameters = inspect_checkpoint(source).elements if source else family.synthetic_parameters
    _check_memory(chosen, options.stages, parameters, visible)
    _check_disk(work, parameters, len(options.stages) * len(chosen))
    _check_port(options.port)
    try:
        runtime.import_model_code(family)
        getattr(importlib.import_module(family.package), options.stack["model"]["class"])
    except (ImportError, AttributeError) as error:
        fix = f"pin a {family.package} that has it, or fix its module"
        raise InputError(f"model family {family.name}: {error}; {fix}") from error
    return Resources(device, chosen, options.timeout or needs.deadline(parameters), source)


def _without_sharing(chosen: tuple[Leg, ...], visible: Visible) -> tuple[Leg, ...]:
    """Return the legs without those whose ranks would share a GPU that one process alone may use. Raises InputError."""
    exclusive = next((gpu for gpu in visible.gpus if gpu.exclusive), None)
    possible = tuple(leg for leg in chosen if not (exclusive and 0 < leg.gpus < leg.world_size))
    if exclusive and possible != chosen:
        what = f"{exclusive.where}: compute mode is exclusive, so ranks cannot share it"
        fix = "have an administrator run nvidia-smi -c DEFAULT"
        if not possible:
            raise InputError(f"{what}; {fix}, give --backend nccl, or give --device cpu")
        print(f"smoke: warning: {what}: one rank alone runs, which partitions nothing; {fix}", flush=True)
    return possible


@contextlib.contextmanager
def importing(package: str) -> Iterator[None]:
    """Raise InputError where the import of `package` in the with statement fails: it is not installed, or broken."""
    try:
        yield
    except Exception as error:
        known = explain(error)
        fix = known[0].failure.cure if known else f"reinstall {package} and what it requires, or give another environment"
        raise InputError(f"{sys.prefix}: {package} cannot be imported ({one_line(error)}); {fix}") from error


def check_machine(options: Options, device: str, visible: Visible | None = None) -> None:
    """Print what may go wrong on this machine, and refuse what will. Raises InputError."""
    if visible is None:
        visible = Visible(()) if options.device == "cpu" else visible_gpus()
    wanted = "cpu" if device == "cpu" and options.device == "auto" and visible.gpus else options.device
    ranks = options.processes if device == "cuda" else None
    found = findings(Situation(wanted, ranks, training=False), visible)
    if wanted != options.device:  # GPUs, which torch cannot use, so that nothing of them matters
        found = [*software.built_for(software.installed(), len(visible.gpus), required=False), *found]
    for finding in found:
        if finding.level == "warn":
            print(f"smoke: warning: {finding}", flush=True)
    if failures := [finding for finding in found if finding.level == "fail"]:
        more = f" (and {len(failures) - 1} more; run {PREFLIGHT})" if len(failures) > 1 else ""
        on_cpu = ", or give --device cpu" if device == "cuda" else ""
        raise InputError(f"{failures[0]}{on_cpu}{more}")


def _source(requested: str | None, family: families.Family) -> Path | None:
    """Return the folder of the requested checkpoint, None for the synthetic one. Fetches a hub id. Raises InputError."""
    if requested is None:
        return None
    if Path(requested).exists():
        return Path(requested).absolute()
    import huggingface_hub
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would outlive the download, and ranks are forked from one thread only
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    print(f"smoke: fetching {requested} …", flush=True)
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        folder = Path(huggingface_hub.snapshot_download(requested, allow_patterns=patterns))
    except Exception as error:
        fix = "fetch it on a machine with network access and give its folder"
        raise InputError(f"--checkpoint {requested}: download failed ({one_line(error, 160)}); {fix}") from error
    options_module.check_folder(folder, family)
    return folder


def _check_memory(chosen: Sequence[Leg], stages: tuple[int, ...], parameters: int, visible: Visible) -> None:
    """Refuse what the memory of this machine or its GPUs cannot hold."""
    available = _available_memory()
    for leg in chosen:
        needed = needs.needs(parameters, leg, stages)
        for gpu in visible.gpus[: leg.gpus // leg.nodes]:
            if gpu.free < needed.device:
                raise InputError(
                    f"{gpu.where}: {needed.device_phase} requires about {_gib(needed.device)}, found "
                    f"{_gib(gpu.free)} free; use more or larger GPUs, {'--zero 3, ' if 2 in stages else ''}"
                    "or a smaller checkpoint"
                )
        if available < needed.host:
            each = needed.host * leg.nodes // leg.world_size
            most = 0 if leg.gpus else available // each
            fix = f"give --nproc {most} or less" if most else "use a larger machine or a smaller checkpoint"
            ranks = "" if leg.gpus else f" ({_gib(each)} each)"
            raise InputError(
                f"--nproc {leg.world_size // leg.nodes}: {needed.host_phase} requires about "
                f"{_gib(needed.host)} of memory{ranks}, "
                f"found {_gib(available)} free; {fix}"
            )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _available_memory() -> int:
    """Return the bytes that new processes can have: the kernel's estimate or the control group's rest, whichever is less."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available = int(found[1]) * 1024 if found else sys.maxsize
    allowed = cgroup.read().memory
    return available if allowed is None else min(available, allowed)


def _check_disk(work: Path, parameters: int, runs: int) -> None:
    needed = needs.disk_bytes(parameters, runs)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise InputError(
            f"{work.parent}: expected about {_gib(needed)} of disk, found {_gib(free)} free; give --report another folder"
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"--port {port}: port {port} of 127.0.0.1 {why}; give --port 0 for any free port") from error


def gpus() -> dict[str, Any]:
    """Return the GPUs that a run saw, as the report has them."""
    return evidence.of_gpus(visible_gpus())


def machine() -> dict[str, Any]:
    """Return the hardware that the verdicts are from, as the report has it."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "architecture": platform.machine(),
        "cpu": model[1] if model else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
