"""One smoke run from its options to its report."""

import contextlib
import ctypes
import datetime
import errno
import fcntl
import functools
import gc
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smokehouse_loader import explain, inspect_checkpoint

from . import options as options_module
from . import report
from .options import BadInput, Options
from .outcome import Outcome, failed
from .report import RankVerdict, Result
from .workspace import Workspace

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def smoke(options: Options, began: float) -> int:
    """Run everything, print it, write the report; the exit code. `began` is when the process did, as `time.monotonic` counts.

    Raises BadInput.
    """
    with _own_folder(options.report) as work:
        return _Run(options, began, work).run()


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """The report folder, this run's alone, and in it a work folder that does not outlive the run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ".lock").exists() and any(folder.iterdir()):
            raise BadInput(
                f"{folder}: not empty, and no folder of reports; give --report a new one, what is in it would be lost"
            )
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}; give --report a folder that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadInput(f"{folder}: another smoke run writes its report here; wait for it or give another --report") from error
    try:
        # Whoever holds the lock is alone: what a killed run left is nobody's.
        for stale in folder.glob("work-*"):
            shutil.rmtree(stale, ignore_errors=True)
        for name in ("report.json", "junit.xml"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "logs", ignore_errors=True)
        (folder / "logs").mkdir()
        work = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}; give --report a folder that can be written") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


class _Run:
    """What a run has found so far."""

    def __init__(self, options: Options, began: float, work: Path) -> None:
        self.options = options
        self.began = began
        self.work = work
        self.started = datetime.datetime.now(datetime.UTC)
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.outcomes: dict[tuple[str, int | None], dict[int, list[tuple[Outcome, float]]]] = {}
        self.results: dict[tuple[str, int | None], Result] = {}
        self.jobs: list[Any] = []

    def run(self) -> int:
        """The exit code."""
        options = self.options
        gc.disable()  # what imports make stays; looking through it again and again takes a tenth of their time
        _prepare_process(offline=options.checkpoint is None or Path(options.checkpoint).exists())
        print(f"smoke: {options.environment}, importing torch, transformers and deepspeed …", flush=True)
        import torch

        from . import stack

        torch.set_num_threads(1)
        self.device = stack.choose_device(options.device)
        gpus = torch.cuda.device_count() if self.device == "cuda" else 0
        if self.device == "cuda" and gpus == 0:
            raise BadInput("--device cuda: torch sees no GPU here; check the driver with nvidia-smi, or give --device cpu")
        stack.choose_accelerator(self.device)
        import transformers  # noqa: F401 - imported before the fork, so that no rank has to

        source = self._source()
        self.processes = options.processes or (2 if self.device == "cpu" else min(gpus, 8))
        parameters = inspect_checkpoint(source).elements if source else options_module.MADE_PARAMETERS
        _check_means(self.processes, parameters, gpus if self.device == "cuda" else None)
        _check_disk(self.work, parameters, len(options.stages))
        _check_port(options.port)
        return self._supervise(source)

    def _supervise(self, source: Path | None) -> int:
        from . import families, jobs, stack
        from .ranks.brief import Brief
        from .ranks.supervisor import Supervisor

        options = self.options
        workspace = Workspace(self.work)
        self.precision = stack.PRECISION[self.device]
        self.jobs = jobs.plan(options.stages, self.processes, self.device, options.stack["expectations"])
        brief = Brief(
            job=self.jobs[0],
            address="",
            device=self.device,
            precision=self.precision,
            processes=self.processes,
            timeout=options.timeout,
            port=options.port,
            source=source or workspace.synthetic,
            workspace=workspace,
            logs=options.report / "logs",
            lock=options.lock,
            stack=options.stack,
        )
        family = options.stack["model"]["family"]
        try:
            stack.import_model_code(families.get(family))
        except ImportError as error:
            raise BadInput(f"model family {family}: {error}; pin a transformers that has it, or mend its module") from error
        with Supervisor(brief, options.start, self.on_outcome) as supervisor:
            gc.freeze()  # a collection in a rank would touch, and so copy, every page it shares with this process
            supervisor.start(self.jobs[0])  # needs no DeepSpeed: it runs while this process imports it
            if self.device == "cpu" and options.start == "fork":
                # On a GPU each rank does this itself: it starts CUDA, which does not survive a fork.
                stack.import_deepspeed(self.device)
                stack.import_engine_code()
            gc.freeze()
            # Two groups at a time fill the gaps in which one waits for a rank; GPU memory and a fixed port are for one.
            supervisor.run(self.jobs, 1 if self.device == "cuda" or options.port else 2)
            fatal = supervisor.fatal
        return self._finish(fatal)

    def _source(self) -> Path | None:
        """The folder of the checkpoint that was asked for, None for the made one. Fetches a hub id."""
        given = self.options.checkpoint
        if given is None:
            return None
        if Path(given).exists():
            return Path(given).absolute()
        import huggingface_hub
        import tqdm

        tqdm.tqdm.monitor_interval = 0  # its thread would outlive the download, and ranks are forked from one thread only
        if not sys.stderr.isatty():
            huggingface_hub.utils.disable_progress_bars()
        print(f"smoke: fetching {given} …", flush=True)
        try:
            patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            folder = Path(huggingface_hub.snapshot_download(given, allow_patterns=patterns))
        except Exception as error:
            from .outcome import one_line

            cure = "fetch it on a machine with a network and give its folder"
            raise BadInput(f"--checkpoint {given}: it could not be fetched ({one_line(error, 160)}); {cure}") from error
        options_module.check_folder(folder, self.options.stack["model"]["family"])
        return folder

    # what the ranks say

    def on_outcome(self, job: Any, number: int, rank: int, outcome: Outcome, seconds: float) -> None:
        """Take one rank's finding; print the check that it completes."""
        step = job.steps[number]
        key = (step.name, job.stage if step.staged else None)
        self.outcomes.setdefault(key, {}).setdefault(rank, []).append((outcome, seconds))
        for complete in self._complete(key):
            self._conclude(complete)

    @functools.cached_property
    def _planned(self) -> dict[tuple[str, int | None], tuple[str, int, int]]:
        """Key -> kind, number of ranks and findings per rank, for all that the plan will report, in order."""
        planned: dict[tuple[str, int | None], tuple[str, int, int]] = {}
        for job in self.jobs:
            for step in job.steps:
                key = (step.name, job.stage if step.staged else None)
                _, ranks, findings = planned.get(key, (step.kind, job.processes, 0))
                planned[key] = (step.kind, ranks, findings + 1)
                if step.name == "train":
                    planned["parity", job.stage] = ("check", job.processes, 1)
        return planned

    def _complete(self, key: tuple[str, int | None]) -> list[tuple[str, int | None]]:
        """The checks that can be concluded now that `key` has one finding more."""
        candidates = [key]
        if key[0] in ("train", "plain run"):
            candidates += [("parity", stage) for stage in self.options.stages]
        if key[0] == "plain run":
            candidates += [("generate", stage) for stage in self.options.stages]
        return [candidate for candidate in candidates if candidate not in self.results and self._ready(candidate)]

    def _ready(self, key: tuple[str, int | None]) -> bool:
        if key[0] == "parity":
            return self._ready(("train", key[1])) and self._ready(("plain run", None))
        _, ranks, findings = self._planned[key]
        found = self.outcomes.get(key, {})
        whole = len(found) == ranks and all(len(of_rank) == findings for of_rank in found.values())
        return whole and (key[0] != "generate" or self._ready(("plain run", None)))

    def _conclude(self, key: tuple[str, int | None], missing: str = "") -> None:
        """Judge one check over all its ranks, and print it. Ranks that said nothing get `missing`."""
        kind, count, findings = self._planned[key]
        of_ranks = {rank: self._judge(key, rank, findings, missing) for rank in range(count)}
        ranks = [RankVerdict(rank, outcome.verdict, outcome.detail) for rank, (outcome, _) in of_ranks.items()]
        verdict, detail = report.overall(ranks)
        seconds = max(seconds for _, seconds in of_ranks.values())
        diagnosis = self._diagnosis(key, ranks) if verdict != "passed" else ""
        result = Result(key[0], key[1], kind, verdict, round(seconds, 3), ranks, detail, diagnosis)
        self.results[key] = result
        if not missing or any(self.outcomes.get(key, {}).values()):
            print(report.line(result, self.colour), flush=True)

    def _diagnosis(self, key: tuple[str, int | None], ranks: list[RankVerdict]) -> str:
        """The known failure that a check or control is about, or that its ranks tell of; empty where there is none."""
        steps = [step for job in self.jobs for step in job.steps if step.name == key[0]]
        known = [step.failure for step in steps if step.failure]
        known += [found.failure for found in explain("\n".join(rank.detail for rank in ranks))]
        return f"{known[0].name}: {known[0].cause} Cure: {known[0].cure}." if known else ""

    def _judge(self, key: tuple[str, int | None], rank: int, findings: int, missing: str) -> tuple[Outcome, float]:
        """One rank's finding on a check: the worst of its steps', compared with the plain run where that is the check."""
        from . import checks

        plain = self.outcomes.get(("plain run", None), {}).get(0, [(failed(""), 0.0)])[0][0]
        if key[0] == "parity":
            train = self.outcomes.get(("train", key[1]), {}).get(rank, [(failed(""), 0.0)])[-1][0]
            if "losses" not in plain.data or "losses" not in train.data:
                return failed(missing or "not reached: there are no losses to compare"), 0.0
            return checks.compare_losses(plain, train, checks.dtype_of(self.precision)), 0.0
        found = self.outcomes.get(key, {}).get(rank, [])
        seconds = sum(seconds for _, seconds in found)
        bad = [outcome for outcome, _ in found if outcome.verdict != "passed"]
        if bad:
            return bad[0], seconds
        if len(found) < findings:
            return failed(missing), seconds
        if key[0] == "generate":
            if "tokens" not in plain.data:
                return failed("not reached: there is no plain run to compare with"), seconds
            return checks.compare_tokens(plain, found[-1][0]), seconds
        return found[-1][0], seconds

    # the end

    def _finish(self, fatal: str) -> int:
        full = shutil.disk_usage(self.work).free < 2**20
        for key in self._planned:
            if key not in self.results:
                self._conclude(key, f"not reached: {fatal}" if fatal else "not reached: an earlier step of its job failed")
        results = [self.results[key] for key in self._planned]
        if full:
            fatal = f"the disk of {self.work.parent} is full; free some room or give --report another place" + (
                f" ({fatal})" if fatal else ""
            )
        passed = not fatal and all(result.verdict != "failed" for result in results)
        seen = [self.outcomes.get(("versions", stage), {}).get(0) for stage in self.options.stages]
        versions: dict[str, Any] = next((found[0][0].data.get("versions", {}) for found in seen if found), {})
        content = {
            "environment": self.options.environment,
            "lock": report.lock_digests(self.options.lock),
            **({"image": self.options.image} if self.options.image else {}),
            "device": self.device,
            "backend": "nccl" if self.device == "cuda" else "gloo",
            "precision": self.precision,
            "world_size": self.processes,
            "versions": versions,
            "machine": _machine(),
            "checkpoint": self.options.checkpoint or "made",
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began, 3),
            "verdict": "passed" if passed else "failed",
            "failure": fatal,
            "not_run": self._not_run(),
        }
        shutil.rmtree(self.work, ignore_errors=True)  # a full disk has to have room for the report
        try:
            report.write(self.options.report, content, results)
            where = f"report: {self.options.report / 'report.json'}"
        except OSError as error:
            # Without a report nothing is proven.
            content["verdict"] = "failed"
            where = f"no report: {self.options.report}: {error.strerror}; free some room or give --report another place"
            fatal = fatal or where
        print(f"\n{report.table(content, results, self.colour)}")
        print(where, flush=True)
        if fatal:
            print(f"smoke: {fatal}", file=sys.stderr)
        return 0 if content["verdict"] == "passed" else 1

    def _not_run(self) -> list[dict[str, str]]:
        """What this run could not show, and why."""
        missing = []
        if self.processes == 1:
            missing.append({"name": "mixed modality", "reason": "one rank only; partitioning over ranks is not proven either"})
        planned = {name for name, _ in self._planned}
        for control, check in (("gloo race", "late gathers"), ("later key layout", "both key layouts")):
            if check in planned:
                missing.append({"name": f"control: {control}", "reason": f"fixed upstream; the check '{check}' proves it"})
        if 3 in self.options.stages and not {"gloo race", "late gathers"} & planned:
            missing.append({"name": "control: gloo race", "reason": "it is a race of several ranks on gloo"})
        if "bf16" not in planned:
            missing.append({"name": "bf16", "reason": "it is this run's main precision"})
        return missing


def _prepare_process(offline: bool) -> None:
    """The environment variables that torch and its friends read when they are imported."""
    defaults = {
        # torchrun's own default. More would make the forked ranks hang: OpenMP's threads do not survive a fork.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks for GPUs without starting CUDA, which does not survive a fork either
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS, so that a resumed run can be compared
        "GLOO_SOCKET_IFNAME": "lo",  # one machine; gloo would look up its name otherwise
        "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages: fewer page faults
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.suppress(AttributeError, OSError):
        # Give freed tensors back to the allocator, not to the kernel: page faults are a third of a small run's time.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _check_means(processes: int, parameters: int, gpus: int | None) -> None:
    """Refuse more ranks than the machine has GPUs or memory for."""
    if gpus is not None and processes > gpus:
        raise BadInput(
            f"--nproc {processes}: NCCL wants one GPU a rank and this machine has {gpus}; give --nproc {gpus} or less"
        )
    each = options_module.BASE_BYTES + options_module.BYTES_PER_PARAMETER * parameters
    available = _available_memory()
    if gpus is None and processes * each > available:
        most = available // each
        cure = f"give --nproc {most} or less" if most else "use a larger machine or a smaller checkpoint"
        raise BadInput(
            f"--nproc {processes}: {processes} ranks need about {_gib(processes * each)} of memory ({_gib(each)} each), "
            f"{_gib(available)} are free; {cure}"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _available_memory() -> int:
    """Bytes that new processes can have: the kernel's estimate, or what the control group leaves, whichever is less."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available = int(found[1]) * 1024 if found else sys.maxsize
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        available = min(available, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(available, 0)


def _check_disk(work: Path, parameters: int, stages: int) -> None:
    needed = options_module.MADE_DISK_BYTES + stages * parameters * options_module.DISK_BYTES_PER_PARAMETER
    free = shutil.disk_usage(work).free
    if free < needed:
        raise BadInput(
            f"{work.parent}: the run needs about {_gib(needed)} of disk here, {_gib(free)} free; give --report another place"
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise BadInput(f"--port {port}: port {port} of 127.0.0.1 {why}; give --port 0 for any free one") from error


def _machine() -> dict[str, Any]:
    """The hardware that the verdicts were seen on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "architecture": platform.machine(),
        "cpu": model[1] if model else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
