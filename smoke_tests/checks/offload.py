"""Optimizer states and parameters in host memory, and the ops of DeepSpeed's own AdamW that a user's configuration requires."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from smoke_tests import runtime
from smoke_tests.checks import loading, training
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.machine import software
from smoke_tests.outcome import Outcome, failed, judged, passed

# The part of a step's seconds in which an op is to be compiled, so that a slow compiler is named and does not end the run.
COMPILE_SHARE = 0.8
LATE = "not compiled"
COMPILER_DEADLINE = 30.0  # seconds in which a compiler says its version
STEPS = 5
# Of weights up to 4 after five steps of about 1e-3: some units in the last place (5e-7), as the op rounds in another order.
TOLERANCE = 1e-5
RATE, EPSILON, DECAY = 1e-3, 1e-8, 0.01


def _cache(context: RankContext) -> Path:
    """Return the folder of ops for this installation, compiler and CPU, of which another one's code may crash or mislead."""
    versions = [f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed")]
    digest = hashlib.sha256(json.dumps(_compiled_for()).encode()).hexdigest()
    return context.workspace.ops / "-".join([*versions, digest[:12]])


def _compiled_for() -> list[str]:
    """Return all that a compiled op depends on: the builds of Python and torch, and their places, compiler and CPU.

    The CPU counts because of `-march=native`, places because compiled files and ninja's plans refer to them.
    """
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0] or platform.machine()
    python = [sys.version, str(sysconfig.get_config_var("SOABI")), sys.prefix]
    build = [str(torch.version.git_version), str(torch.version.cuda), str(torch.compiled_with_cxx11_abi()), torch.__file__]
    return [*python, *build, *_compiler(), flags]


def _compiler() -> list[str]:
    """Return the C++ compiler that torch runs, what it says of itself, and the options that torch adds to its own."""
    command = os.environ.get("CXX", "c++")
    try:
        said = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=COMPILER_DEADLINE).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = "silent"
    return [shutil.which(command) or command, said, *(os.environ.get(name, "") for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS"))]


def ready(context: RankContext, op: str) -> bool:
    """Whether DeepSpeed loads `op` without compiling it: from the installation, or from what an earlier job compiled."""
    if software.ahead_of_time(op):
        return context.device == "cuda" or op == "cpu_adam"  # fused_adam is then for GPUs alone
    cache = _cache(context)
    if (cache / f"{op}.ready").exists():
        _use(cache)
        return True
    return False


def _use(cache: Path) -> None:
    """Have torch look for compiled ops in `cache`, and find ninja, which is beside this Python."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(cache)
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = f"{scripts}{os.pathsep}{os.environ['PATH']}"


def compile_cpu_adam(context: RankContext, _: TrainingState) -> Outcome:
    """Check that DeepSpeed's Adam ops for the CPU compile and load here; a later run finds them."""
    return _compiled(context, "cpu_adam")


def compile_fused_adam(context: RankContext, _: TrainingState) -> Outcome:
    """On a CPU, a configuration with an optimizer of type AdamW uses fused_adam."""
    return _compiled(context, "fused_adam")


def _compiled(context: RankContext, op: str) -> Outcome:
    began = time.monotonic()
    runtime.import_deepspeed(context.device)
    cache = _cache(context)
    cache.mkdir(parents=True, exist_ok=True)
    _use(cache)
    if (cache / f"{op}.ready").exists():
        return passed(f"{op} was compiled by an earlier run")
    shutil.rmtree(cache / op, ignore_errors=True)  # a killed build leaves a lock on which torch would wait
    limit = COMPILE_SHARE * context.timeout
    if problem := _compile(op, began + limit):
        more = f" within {limit:.0f} s; give --timeout more than {context.timeout:.0f}" if problem == LATE else ""
        return failed(f"{op}: {problem}{more}")
    (cache / f"{op}.ready").touch()
    return passed(f"{op} compiled in {time.monotonic() - began:.0f} s")


def _compile(op: str, deadline: float) -> str:
    """Compile and load an op in a child process, which ends by the deadline (monotonic); return what went wrong, in words.

    The child and its compilers stay in this job's process group, which the supervisor kills however the job ends.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runtime.op_builder(op).load(verbose=False)
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            _end_group()
            os.waitpid(child, 0)
            return LATE
        time.sleep(0.05)
    return "not compiled; see the log of the job" if ended[1] else ""


def _end_group() -> None:
    """Kill all processes of this process's group but itself: a child, and the compilers that it started."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            if int(entry.name) != os.getpid() and os.getpgid(int(entry.name)) == os.getpgrp():
                os.kill(int(entry.name), signal.SIGKILL)


def _steps(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def _op_problems() -> list[str]:
    """Return how DeepSpeedCPUAdam's steps differ from torch's AdamW."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    weights = torch.randn(10_007, generator=torch.Generator().manual_seed(0))
    found, expected = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    settings: dict[str, Any] = {"lr": RATE, "eps": EPSILON, "weight_decay": DECAY}
    _steps(DeepSpeedCPUAdam([found], adamw_mode=True, **settings), found)
    _steps(torch.optim.AdamW([expected], **settings), expected)
    worst = (found - expected).abs().max().item()
    wrong = f"after {STEPS} steps a weight is off by {worst:.2g} from torch's AdamW, at most {TOLERANCE:g} allowed"
    return [] if worst <= TOLERANCE else [wrong]


def offload(context: RankContext, state: TrainingState) -> Outcome:
    """Check that DeepSpeedCPUAdam takes AdamW's steps, and that an offloaded engine has the losses of the plain run."""
    import deepspeed

    if not ready(context, "cpu_adam"):
        return failed("cpu_adam: expected a compiled op, found none; see the check 'cpu ops'")
    problems = _op_problems()
    config = runtime.offloaded(context.engine_config())
    with loading.transformers_zero(config):
        state.model = loading.ready_model(context, context.source)
    group = context.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    settings = {name: group[name] for name in ("lr", "eps", "weight_decay")}
    optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(state.model.parameters(), adamw_mode=True, **settings)
    state.engine, *_ = deepspeed.initialize(model=state.model, optimizer=optimizer, config=config)
    elsewhere = {str(p.device) for p in _masters(state.engine) if p.device.type != "cpu"}
    problems += [f"optimizer states on {name}" for name in sorted(elsewhere)]
    problems += _placement_problems(state.engine)
    losses = training.engine_steps(context, state, training.own_sample(context), training.TRAIN_STEPS)
    expected = json.loads(context.workspace.plain_losses.read_text())
    worst = training.off_by(expected, losses)
    if not worst <= training.PARITY[context.dtype]:
        said = f"losses: expected {training.numbers(expected)} (plain run), found {training.numbers(losses)}"
        problems.append(f"{said}; off by {worst:.2g}")
    return judged(
        problems, f"AdamW's steps; loss {training.numbers(losses)}, within {worst:.1g} of the plain run", losses=losses
    )


def _placement_problems(engine: Any) -> list[str]:
    """Return what the engine itself does not keep in host memory, which on a CPU no device shows."""
    kept = {"the optimizer": engine.zero_offload_optimizer()}
    if engine.zero_optimization_stage() == 3:
        kept["parameters"] = engine.zero_offload_param()
    # A name or, in a version that keeps pydantic's enums, what has it as its value; None where nothing is offloaded.
    devices = {what: getattr(where, "device", None) for what, where in kept.items()}
    found = {what: str(getattr(device, "value", device)) for what, device in devices.items()}
    return [f"offload: expected {what} on cpu, the engine says {where}" for what, where in found.items() if where != "cpu"]


def _masters(engine: Any) -> list[torch.Tensor]:
    """Return the tensors that the engine's optimizer steps."""
    return [parameter for group in engine.optimizer.optimizer.param_groups for parameter in group["params"]]
