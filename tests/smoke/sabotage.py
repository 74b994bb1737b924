"""Run the smoke tests with something real broken under them: `python tests/smoke/sabotage.py NAME... -- ARGUMENTS`.

Each sabotage breaks what a check tests: a collective, a weight in memory, a file, a function of transformers or DeepSpeed.
None changes a check itself. It is applied while the check runs and undone after it, so that other checks still pass. Ranks are
forked and so inherit what is patched here; for that the parent must have one thread only: set OMP_NUM_THREADS=1, since torch is
imported here before the smoke tests can set it.
"""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import importlib.metadata
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from smoke_tests import endings, families, legs, needs, runtime
from smoke_tests.checks import (
    RankContext,
    TrainingState,
    adapters,
    attention,
    baseline,
    denoising,
    generation,
    hierarchical,
    installed,
    kernels,
    loading,
    memory,
    mixed_modality,
    offload,
    overlap,
    precision,
    saving,
    sizes,
    trainer,
    training,
    universal,
)
from smoke_tests.checks import collectives as collectives_checks
from smoke_tests.checks import nodes as nodes_checks
from smoke_tests.controls import fixed_upstream, injected
from smoke_tests.fixtures import damage, samples, tiny_checkpoint
from smoke_tests.ranks import channel, supervisor
from smokehouse_loader import denoisers, zero
from smokehouse_loader import saving as saving_of_loader

# May yield a context for the step to run with in place of its own.
Fault = Callable[[RankContext, TrainingState], AbstractContextManager[Any]]
SABOTAGES: dict[str, Callable[[], None]] = {}


def sabotage(install: Callable[[], None]) -> Callable[[], None]:
    """Add a sabotage to the table under its function's name."""
    SABOTAGES[install.__name__] = install
    return install


def during(of: ModuleType, step: str, fault: Fault, *, stage: int | None = None, rank: int | None = None) -> None:
    """Apply `fault` while the function `step` of a module runs, on one rank or all and in one stage or all."""
    run = getattr(of, step)

    @functools.wraps(run)
    def broken(context: RankContext, state: TrainingState) -> Any:
        hit = stage in (None, context.stage) and rank in (None, context.rank)
        with fault(context, state) if hit else contextlib.nullcontext() as other:
            return run(other if isinstance(other, RankContext) else context, state)

    setattr(of, step, broken)


def wrapped(owner: Any, name: str, after: Callable[..., None]) -> AbstractContextManager[Any]:
    """Patch a function so that `after(result, *args, **kwargs)` is called once it has returned."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        after(result, *args, **kwargs)
        return result

    return patch.object(owner, name, call)


def held(parameter: Any) -> torch.Tensor:
    """Return the elements that this rank holds of a parameter."""
    return zero.local_partition(parameter)[0]


# the run


@sabotage
def one_rank_and_two() -> None:
    """Run what a machine with one GPU runs: everything with one rank, then with two."""
    legs.choose = lambda *_: (legs.Leg("gloo", 1), legs.Leg("gloo", 2))


# the checks


@sabotage
def large_model() -> None:
    """Take the synthetic checkpoint for one that a single process cannot train."""
    needs.SMALL_MODEL = 1


@sabotage
def edited_file() -> None:
    """Give a Python file of transformers another digest in RECORD on rank 1, as if it had been edited."""
    read_text = Path.read_text

    def edited(self: Path, *args: Any, **kwargs: Any) -> str:
        text = read_text(self, *args, **kwargs)
        return text.replace("modeling_qwen2_5_vl.py,sha256=", "modeling_qwen2_5_vl.py,sha256=_")

    during(installed, "versions", lambda *_: patch.object(Path, "read_text", edited), rank=1)


@sabotage
def collectives() -> None:
    """Make each collective get one number wrong on rank 1; under ZeRO-3 only those of large tensors, their last number."""

    @contextlib.contextmanager
    def fault(context: RankContext, _: TrainingState) -> Iterator[None]:
        import deepspeed.comm as comm

        def spoil(_: Any, output: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            if context.stage == 2:
                output[5] += 1
            elif output.dtype == torch.bfloat16:
                output[-1] += 1

        with contextlib.ExitStack() as stack:
            for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
                stack.enter_context(wrapped(comm, name, spoil))
            yield

    during(collectives_checks, "collectives", fault, rank=1)


@sabotage
def another_node() -> None:
    """Have the last rank, on another node, lack a package and be a minute ahead."""

    @contextlib.contextmanager
    def fault(context: RankContext, _: TrainingState) -> Iterator[None]:
        if context.rank != context.world_size - 1:
            yield
            return
        packages, now = [*importlib.metadata.distributions()][1:], time.time
        with (
            patch.object(importlib.metadata, "distributions", lambda: packages),
            patch.object(time, "time", lambda: now() + 60),
        ):
            yield

    during(nodes_checks, "nodes", fault)


@sabotage
def stale_copies() -> None:
    """Keep each node's copy of the weights as DeepSpeed 0.15.4 leaves it: with those from before the load."""
    during(hierarchical, "hpz", lambda *_: patch.object(zero, "drop_copies", lambda _: None))


@sabotage
def lost_moments() -> None:
    """Have the moments of the largest tensor be zero in the universal checkpoint."""

    @contextlib.contextmanager
    def fault(context: RankContext, _: TrainingState) -> Iterator[None]:
        yield
        folder = context.workspace.engine_checkpoints(context.stage) / universal.TAG / "zero"
        for file in sorted(folder.glob("*/exp_avg.pt"), key=lambda path: path.stat().st_size)[-1:]:
            content = torch.load(file, weights_only=False)
            (content["param"] if isinstance(content, dict) else content).zero_()  # ZeRO-2 and ZeRO-3
            torch.save(content, file)

    during(universal, "convert", fault)


@sabotage
def skipped_collective() -> None:
    """Have rank 1 skip a collective, and go on to the next."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        timed, skipped = collectives_checks._timed, iter([1.0])

        def skip(*args: Any) -> float:
            return next(skipped, 0.0) or timed(*args)

        with patch.object(collectives_checks, "_timed", skip):
            yield

    during(collectives_checks, "collectives", fault, rank=1)


@sabotage
def leaves() -> None:
    """End rank 1 in a training step as Ctrl-C and sys.exit end a program."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    during(training, "train", fault, rank=1)


@sabotage
def poses_as_launcher() -> None:
    """Let rank 1 say in a training step what only its launcher may, and print how many connections of the run it has."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        peers = []
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(file.name))) as found:
                peers += [name for name in (found.getpeername(),) if str(name).endswith("/events")]
        print(f"connections of the run: {len(peers)}", flush=True)
        channel.Channel(f"unix:{peers[0]}", "zero2", None).send(channel.Exit(os.getppid(), 0))
        yield

    during(training, "train", fault, rank=1, stage=2)


@sabotage
def chatters() -> None:
    """Write 1 GB to standard error in a training step of rank 1."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        line = b"chatter\n" * (1 << 17)
        for _count in range(1 << 10):
            os.write(2, line)
        os.write(2, b"the last word\n")
        yield

    during(training, "train", fault, rank=1, stage=2)


@sabotage
def stops_itself() -> None:
    """Stop rank 1 between two collectives of a training step."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        import torch.distributed as dist

        def stop(_: Any, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGSTOP)

        with wrapped(dist, "all_reduce", stop):
            yield

    during(training, "train", fault, rank=1)


@sabotage
def dropped_config() -> None:
    """Drop the `HfDeepSpeedConfig` before ZeRO-3 loads: the classic mistake of keeping no reference to it."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        yield

    during(loading, "load", fault, stage=3)


@sabotage
def changed_element() -> None:
    """Change one element of one parameter on rank 1 under ZeRO-3."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        elements = held(state.model.model.norm.weight)
        before = elements[3].item()
        elements[3] = before + 2**-12
        try:
            yield
        finally:
            elements[3] = before

    during(loading, "weights", fault, stage=3, rank=1)


@sabotage
def lost_key() -> None:
    """Load a checkpoint that lacks a key under ZeRO-2."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[RankContext]:
        copy = context.workspace.root / f"lost-key-{context.rank}"
        damage.damaged_copy(context.source, copy, context.family, damage.missing_key)
        yield dataclasses.replace(context, source=copy)

    during(loading, "load", fault, stage=2)


@sabotage
def negated_norm() -> None:
    """Negate half of a norm, rank 1's part, while ZeRO-3's engine generates."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        import deepspeed

        def negate(_: Any, *args: Any, **kwargs: Any) -> None:
            held(state.model.model.norm.weight).neg_()

        with wrapped(deepspeed, "initialize", negate):
            yield
        held(state.model.model.norm.weight).neg_()

    during(generation, "generate", fault, stage=3, rank=1)


@sabotage
def detached_vision() -> None:
    """Detach the vision tower's output under ZeRO-3: the loss still falls."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        hook = state.engine.module.visual.register_forward_hook(lambda _module, _inputs, output: output.detach())
        try:
            yield
        finally:
            hook.remove()

    during(training, "train", fault, stage=3)


@sabotage
def no_learning() -> None:
    """Set the learning rate to 0 under ZeRO-2."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        for group in state.engine.optimizer.param_groups:
            group["lr"] = 0.0
        yield

    during(training, "train", fault, stage=2)


@sabotage
def no_learning_in_plain_run() -> None:
    """Keep the plain run from learning."""

    def fault(*_: Any) -> AbstractContextManager[Any]:
        return patch.object(torch.optim, "AdamW", lambda parameters, **_: torch.optim.SGD(parameters, lr=0.0))

    during(baseline, "plain_run", fault)


@sabotage
def stuttering() -> None:
    """Have the plain run generate one token again and again, as a degenerate model does."""

    def fault(context: RankContext, state: TrainingState) -> AbstractContextManager[Any]:
        def repeat(said: Any, *args: Any, **kwargs: Any) -> None:
            said.sequences[0, -generation.NEW_TOKENS :] = 5

        return wrapped(context.model_class, "generate", repeat)

    during(baseline, "plain_run", fault)


@sabotage
def unclear_choice() -> None:
    """Use the prompt whose two best first tokens are as good as equal."""
    right = families.get
    families.get = lambda name: dataclasses.replace(right(name), clear_scene=11)


@sabotage
def averaged_over_padding() -> None:
    """Average every loss over all tokens, those without a label too, as a loss that knows no -100 does."""
    original = torch.nn.functional.cross_entropy

    def over_all(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        labelled = (labels != samples.IGNORED).sum() / labels.numel()
        loss: torch.Tensor = original(logits, labels, *args, **kwargs)
        return loss * labelled

    torch.nn.functional.cross_entropy = over_all


def _as_stage(stage: int) -> None:
    """Have engines of ZeRO-2 run another stage."""
    original = runtime.config

    def config(*args: Any) -> dict[str, Any]:
        found = original(*args)
        found["zero_optimization"]["stage"] = stage if found["zero_optimization"]["stage"] == 2 else 3
        return found

    setattr(runtime, "config", config)  # noqa: B010 - a function of another signature


@sabotage
def zero1_as_zero2() -> None:
    """Run ZeRO-1 in place of ZeRO-2: every rank has all gradients until the step."""
    _as_stage(1)


@sabotage
def no_zero() -> None:
    """Run plain data parallelism in place of ZeRO-2: every rank keeps everything."""
    _as_stage(0)


@sabotage
def no_other_stage() -> None:
    """Have the controls of ZeRO's stage run the stage under test."""
    original = injected._stage_problems
    injected._stage_problems = lambda context, state, stage: original(context, state, context.stage)


@sabotage
def blind_shares() -> None:
    """Find a share in whatever a rank holds."""
    memory.share_problems = lambda *_: ("", [])


@sabotage
def blamed_shares() -> None:
    """Find no share in whatever a rank holds."""
    memory.share_problems = lambda *_: ("", ["7 gradient elements held, a rank's share of 6 is 3"])


@sabotage
def lost_gradient() -> None:
    """Lose the gradient of the last rank: its loss is right, and what it adds to the sum is 0."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        backward = state.engine.backward
        lost = context.rank == context.world_size - 1
        with patch.object(state.engine, "backward", lambda loss: backward(loss * 0.0 if lost else loss)):
            yield

    during(training, "train", fault)


@sabotage
def fast_learning() -> None:
    """Train with a learning rate that is a fifth too large."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        for group in state.engine.optimizer.param_groups:
            group["lr"] *= 1.2
        yield

    during(training, "train", fault)


@sabotage
def main_runs_in_bf16() -> None:
    """Run everything in bf16, as on a GPU. Breaks nothing."""
    legs.PRECISION["cpu"] = "bf16"


@sabotage
def clipped_gradients() -> None:
    """Have DeepSpeed clip gradients, as it does by default from 0.19.4; the plain run does not."""
    original = runtime.config

    def config(*args: Any) -> dict[str, Any]:
        return original(*args) | {"gradient_clipping": 0.1}

    setattr(runtime, "config", config)  # noqa: B010 - a function of another signature


@sabotage
def lost_optimizer_states() -> None:
    """Load the engine checkpoint without its optimizer states."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        load = DeepSpeedEngine.load_checkpoint

        def without(self: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self, *args, **kwargs, load_optimizer_states=False)

        with patch.object(DeepSpeedEngine, "load_checkpoint", without):
            yield

    during(saving, "resume", fault)


def _spoil_weights(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    state["model.norm.weight"].data[0] += 1
    torch.save(state, file)


@sabotage
def spoiled_consolidation() -> None:
    """Change one element of ZeRO-2's 16-bit weights and of ZeRO-3's 32-bit weights."""

    @contextlib.contextmanager
    def half(context: RankContext, state: TrainingState) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        def spoil(_saved: Any, _self: Any, folder: str) -> None:
            _spoil_weights(Path(folder))

        with wrapped(DeepSpeedEngine, "save_16bit_model", spoil):
            yield

    @contextlib.contextmanager
    def full(context: RankContext, state: TrainingState) -> Iterator[None]:
        import deepspeed.utils.zero_to_fp32 as converter

        def spoil(_written: Any, _source: str, target: str, **_: Any) -> None:
            _spoil_weights(Path(target))

        with wrapped(converter, "convert_zero_checkpoint_to_fp32_state_dict", spoil):
            yield

    during(precision, "bf16", half, stage=2, rank=0)
    during(saving, "consolidated", full, stage=3)


@sabotage
def coarse_moments() -> None:
    """Keep the optimizer's moments of the bf16 run in bf16 between its steps."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        step = DeepSpeedEngine.step

        def coarse(self: Any, *args: Any, **kwargs: Any) -> Any:
            def turn(dtype: torch.dtype) -> None:
                for state in self.optimizer.optimizer.state.values():
                    state.update({name: state[name].to(dtype) for name in ("exp_avg", "exp_avg_sq") if name in state})

            turn(torch.float32)
            result = step(self, *args, **kwargs)
            turn(torch.bfloat16)
            return result

        with patch.object(DeepSpeedEngine, "step", coarse):
            yield

    during(precision, "bf16", fault)


@sabotage
def bf16_off() -> None:
    """Load one element of one tensor wrong in the bf16 run on rank 1."""

    def fault(context: RankContext, state: TrainingState) -> AbstractContextManager[Any]:
        def spoil(loaded: Any, *args: Any, **kwargs: Any) -> None:
            held(loaded[0].model.norm.weight)[0] += 1

        return wrapped(context.model_class, "from_pretrained", spoil)

    during(precision, "bf16", fault, rank=1)


@sabotage
def gathered_elements() -> None:
    """Have ZeRO-3 keep small parameters whole once they are gathered, as it does by default."""
    original = runtime.config

    def config(*args: Any) -> dict[str, Any]:
        found = original(*args)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 100_000
        return found

    during(generation, "generate", lambda *_: patch.object(runtime, "config", config), stage=3)


@sabotage
def labelled_dummy() -> None:
    """Let the dummy image of the workaround for mixed modality count in the loss."""
    original = samples.with_dummy_image

    def labelled(*args: Any) -> dict[str, torch.Tensor]:
        found = original(*args)
        return found | {"labels": found["input_ids"]}

    during(mixed_modality, "dummy_image", lambda *_: patch.object(samples, "with_dummy_image", labelled))


@sabotage
def hanging_text_rank() -> None:
    """Have the rank with text only wait for ever: mixed modality hangs, as reported on NCCL."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        threading.Event().wait()
        yield

    supervisor.MAY_END_DEADLINE = 3.0
    during(mixed_modality, "text_only_ranks", fault, rank=1)


@sabotage
def slow_loading() -> None:
    """Have checkpoints load for longer than ranks may hang in what comes after."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        threading.Event().wait(1.5 * supervisor.MAY_END_DEADLINE)
        yield

    supervisor.MAY_END_DEADLINE = 6.0
    during(mixed_modality, "start_engine", fault)


def _signalled(step: tuple[ModuleType, str], number: signal.Signals, rank: int) -> None:
    @contextlib.contextmanager
    def fault(context: RankContext, _state: TrainingState) -> Iterator[None]:
        torch.distributed.barrier()  # each rank has begun the step: an end before that is judged as the earlier step's
        if context.rank == rank:
            os.kill(os.getpid(), number)
        yield

    supervisor.MAY_END_DEADLINE = 3.0
    during(*step, fault)


@sabotage
def stopped_text_rank() -> None:
    """Stop the rank with text only, as a person or a batch system does."""
    _signalled((mixed_modality, "text_only_ranks"), signal.SIGSTOP, 1)


@sabotage
def killed_text_rank() -> None:
    """Kill the rank with text only, as the kernel does where memory is short."""
    _signalled((mixed_modality, "text_only_ranks"), signal.SIGKILL, 1)


@sabotage
def aborted_text_rank() -> None:
    """Abort the rank with text only, as an assertion in native code does."""
    _signalled((mixed_modality, "text_only_ranks"), signal.SIGABRT, 1)


@sabotage
def broken_abort() -> None:
    """Have the handler of SIGABRT crash in the rank with text only, as Python's dump of running threads does at times."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGABRT, 0xBAD)  # no code is there
        yield

    during(mixed_modality, "text_only_ranks", fault, rank=1)


@sabotage
def hanging_shape() -> None:
    """Have rank 0 hang in place of refusing the wrong shape."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        threading.Event().wait()
        yield

    supervisor.MAY_END_DEADLINE = 3.0
    during(injected, "wrong_shape", fault, stage=3, rank=0)


@sabotage
def obliging_data() -> None:
    """Give text-only ranks a dummy image: with labels under ZeRO-2, rightly without under ZeRO-3."""

    @contextlib.contextmanager
    def fault(context: RankContext, state: TrainingState) -> Iterator[None]:
        original = mixed_modality.mixed_sample

        def sample(context: RankContext, rank: int) -> dict[str, torch.Tensor]:
            found = samples.with_dummy_image(context.family, context.processor, original(context, rank))
            return found if context.stage == 3 else found | {"labels": found["input_ids"]}

        with patch.object(mixed_modality, "mixed_sample", sample):
            yield

    during(mixed_modality, "text_only_ranks", fault, rank=1)


@sabotage
def wrong_tower() -> None:
    """Give the family a vision tower that the model does not have."""
    right = families.get

    def wrong(name: str) -> families.Family:
        family = right(name)
        return dataclasses.replace(family, vision=family.vision and dataclasses.replace(family.vision, tower="vision."))

    families.get = wrong


@sabotage
def raising_rank() -> None:
    """Raise on one rank in a check, while the other waits in a collective."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        raise RuntimeError("rank 1 has had enough")
        yield

    during(training, "train", fault, rank=1)


@sabotage
def read_empty_weight() -> None:
    """Read a weight that is partitioned, as linear attention does; the exception's own line does not say of what."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        layer = SimpleNamespace(conv1d=SimpleNamespace(weight=torch.empty(0)))
        layer.conv1d.weight.squeeze(1)
        yield

    during(generation, "generate", fault)


@sabotage
def unwritable_checkpoint() -> None:
    """Let the disk be full when the synthetic checkpoint is written."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model-00001-of-00003.safetensors")

    setattr(tiny_checkpoint, "save_file", full)  # noqa: B010 - a name that the module imports


# what upstream fixed, broken again


@sabotage
def unwaited_gathers() -> None:
    """Have DeepSpeed wait for the last gather only, as before 0.19.8."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.zero.partition_parameters import Init

        gather_all = Init._allgather_params_coalesced

        def unwaited(self: Any, *args: Any, **kwargs: Any) -> Any:
            launched: list[Any] = []

            def gather(original: runtime.Collective) -> runtime.Collective:
                def launch(*args: Any, **kwargs: Any) -> Any:
                    launched.append(original(*args, **kwargs))
                    return SimpleNamespace(wait=lambda own=launched[-1]: own.wait() if own is launched[-1] else None)

                return launch

            with zero.changed_collectives(gather, *zero.GATHERS):
                return gather_all(self, *args, **kwargs)

        with patch.object(Init, "_allgather_params_coalesced", unwaited):
            yield

    during(fixed_upstream, "late_gathers", fault)


@sabotage
def swapped_layers() -> None:
    """Have transformers swap the two layers of the language model: no key is missing and no shape is wrong."""

    def fault(*_: Any) -> AbstractContextManager[Any]:
        from transformers import core_model_loading

        rename = core_model_loading.rename_source_key

        def swapped(*args: Any, **kwargs: Any) -> Any:
            name, *rest = rename(*args, **kwargs)
            number = {"0": "1", "1": "0"}
            return re.sub(r"(?<=language_model\.layers\.)[01]", lambda found: number[found[0]], name), *rest

        return patch.object(core_model_loading, "rename_source_key", swapped)

    during(fixed_upstream, "both_key_layouts", fault)


@sabotage
def initialize_changes_an_element() -> None:
    """Change a weight of a denoiser on rank 1 while its engine is initialised, until that was looked at."""

    @contextlib.contextmanager
    def fault(_: RankContext, state: TrainingState) -> Iterator[None]:
        right: list[torch.Tensor] = []

        def spoil(*_: Any) -> None:
            first = held(next(iter(state.model.parameters())))
            right.append(first[0].clone())
            first[0] += 1

        with wrapped(training, "start_engine", spoil):
            yield
        held(next(iter(state.model.parameters())))[0] = right[0]

    during(denoising, "initialize", fault, rank=1)


@sabotage
def loaded_part_of_another() -> None:
    """Have the loader leave another number in rank 1's partition of a denoiser than the file has."""

    def spoil(loaded: tuple[Any, Any], *_: Any, **__: Any) -> None:
        held(next(iter(loaded[0].parameters())))[0] += 1

    during(denoising, "load_model_by_parts", lambda *_: wrapped(denoisers, "load", spoil), stage=3, rank=1)


@sabotage
def loaded_in_other_precision() -> None:
    """Have the loader take a denoiser for one in bf16, in which its numbers are the file's, rounded."""
    load = denoisers.load

    def rounded(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "torch_dtype": torch.bfloat16})

    during(denoising, "load_model_by_parts", lambda *_: patch.object(denoisers, "load", rounded), stage=2, rank=0)


@sabotage
def ungathered_save() -> None:
    """Have the loader save what ZeRO-3 left of a parameter."""
    during(denoising, "save", lambda *_: patch.object(saving_of_loader, "_whole", lambda _: contextlib.nullcontext()), stage=3)


@sabotage
def stale_save() -> None:
    """Have the loader save another number than a denoiser has under ZeRO-2."""
    write = saving_of_loader._write

    def spoiled(module: Any, state: dict[str, torch.Tensor], *args: Any) -> None:
        next(iter(state.values())).view(-1)[0] += 1
        write(module, state, *args)

    during(denoising, "save", lambda *_: patch.object(saving_of_loader, "_write", spoiled), stage=2)


# the controls: what they inject does not happen, or is hidden from them


@sabotage
def no_damage() -> None:
    """Leave every damaged checkpoint sound."""
    damage.DAMAGES.update(dict.fromkeys(damage.DAMAGES, lambda *_: None))


@sabotage
def no_seed_failure() -> None:
    """Prevent both ways to the seed failure."""

    @contextlib.contextmanager
    def no_init(*_: Any) -> Iterator[None]:
        import deepspeed

        with patch.object(deepspeed.zero, "Init", lambda **_: contextlib.nullcontext()):
            yield

    during(injected, "seed_failure_zero_init", no_init)
    tolerant = patch.object(torch.nn.Module, "load_state_dict", lambda self, state: None)
    during(injected, "seed_failure_load_state_dict", lambda *_: tolerant)


@sabotage
def no_race() -> None:
    """Wait for gathers where the control relies on their being late."""
    injected.RACE_TRIES = 3
    during(injected, "gloo_race", lambda *_: zero.waited_gathers())


@sabotage
def blind_comparison() -> None:
    """Have the comparison with the file find every tensor equal."""
    injected.RACE_TRIES = 3
    loading.wrong_tensors = lambda *_: {}


# what users train with


@contextlib.contextmanager
def _optimizer_group(**changes: float) -> Iterator[None]:
    """Multiply settings of the optimizer of the next engine."""
    import deepspeed

    def change(made: Any, *args: Any, **kwargs: Any) -> None:
        for group in made[1].param_groups:
            group.update({name: group[name] * factor for name, factor in changes.items()})

    with wrapped(deepspeed, "initialize", change):
        yield


@sabotage
def other_rate() -> None:
    """Have the Trainer's first step under ZeRO-2 half as long again as its arguments say."""
    during(trainer, "train", lambda *_: _optimizer_group(lr=1.5), stage=2)


@sabotage
def undecayed() -> None:
    """Have the Trainer's optimizer under ZeRO-2 decay no weights, as a configuration that does not know `auto` does."""
    during(trainer, "train", lambda *_: _optimizer_group(weight_decay=0.0), stage=2)


@sabotage
def unrecomputed() -> None:
    """Have gradient checkpointing under ZeRO-2 keep all activations: it is on, and saves no memory."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from torch.utils import checkpoint
        from transformers import modeling_utils

        def keep(function: Callable[..., Any], *args: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        with patch.object(checkpoint, "checkpoint", keep), patch.object(modeling_utils, "checkpoint", keep):
            yield

    during(trainer, "train", fault, stage=2)


@sabotage
def forgotten_moments() -> None:
    """Have the Trainer resume under ZeRO-3 without optimizer states."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        load = DeepSpeedEngine.load_checkpoint

        def without(self: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self, *args, **kwargs | {"load_optimizer_states": False})

        with patch.object(DeepSpeedEngine, "load_checkpoint", without):
            yield

    during(trainer, "resume", fault, stage=3)


@sabotage
def unclipped() -> None:
    """Have DeepSpeed not clip the Trainer's gradients under ZeRO-2: Adam makes steps of the same size of them."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        with patch.object(DeepSpeedEngine, "gradient_clipping", lambda self: 0.0):
            yield

    during(trainer, "train", fault, stage=2)


@sabotage
def scheduled_twice() -> None:
    """Take two steps of the Trainer's schedule of learning rates with each step of the optimizer under ZeRO-3."""

    def again(engine: Any) -> None:
        if engine.micro_steps % engine.gradient_accumulation_steps() == 0:
            engine.lr_scheduler.step()

    during(trainer, "train", _with_each_step(again), stage=3)


@sabotage
def forgotten_schedule() -> None:
    """Have the Trainer resume under ZeRO-2 with a schedule of learning rates that begins anew."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        load = DeepSpeedEngine.load_checkpoint

        def without(self: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self, *args, **kwargs | {"load_lr_scheduler_states": False})

        with patch.object(DeepSpeedEngine, "load_checkpoint", without):
            yield

    during(trainer, "resume", fault, stage=2)


@sabotage
def one_picture() -> None:
    """Show the model the first picture of a sample with two."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

        see = Tower.forward

        def first(self: Any, hidden_states: torch.Tensor, grid_thw: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen = hidden_states.clone()
            seen[int(grid_thw[0].prod()) :] = 0
            return see(self, seen, grid_thw, *args, **kwargs)

        with patch.object(Tower, "forward", first):
            yield

    during(sizes, "plain_run", fault)


@sabotage
def spoiled_save() -> None:
    """Change one element of what the Trainer saves under ZeRO-3."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from safetensors.torch import load_file, save_file
        from transformers import Trainer

        def spoil(_saved: Any, _self: Any, folder: str, _internal_call: bool = False) -> None:
            if _internal_call:  # a checkpoint
                return
            file = next(Path(folder).glob("*.safetensors"))
            tensors = load_file(file)
            next(tensor for name, tensor in tensors.items() if name.endswith(".norm.weight"))[0] += 1
            save_file(tensors, file, metadata={"format": "pt"})

        with wrapped(Trainer, "save_model", spoil):
            yield

    during(trainer, "resume", fault, stage=3, rank=0)


@sabotage
def no_persistence() -> None:
    """Have the Trainer train under ZeRO-3 with a configuration that keeps no parameter whole."""
    shipped = runtime.shipped_config

    def without(stage: int, **kwargs: bool) -> dict[str, Any]:
        config = shipped(stage, **kwargs)
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
        return config

    for step in ("train", "resume"):
        during(trainer, step, lambda *_: patch.object(runtime, "shipped_config", without), stage=3)


def _with_each_step(change: Callable[[Any], None]) -> Fault:
    """Return a fault that changes the engine after each of its steps."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        with wrapped(DeepSpeedEngine, "step", lambda _, engine, *args: change(engine)):
            yield

    return fault


def _nudge(part: str) -> Callable[[Any], None]:
    """Return a function that changes one element of the first parameter whose name contains `part`."""

    def nudge(engine: Any) -> None:
        held(next(parameter for name, parameter in engine.module.named_parameters() if part in name)).data[0] += 2**-10

    return nudge


def _without_last_gradient(context: RankContext, _: TrainingState) -> AbstractContextManager[Any]:
    """Lose what the last rank adds to the gradients."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    backward, lost = DeepSpeedEngine.backward, context.rank == context.world_size - 1

    def losing(self: Any, loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return backward(self, loss * 0.0 if lost else loss, *args, **kwargs)

    return patch.object(DeepSpeedEngine, "backward", losing)


@sabotage
def lost_adapter_gradient() -> None:
    """Lose the last rank's gradients of a LoRA adapter under ZeRO-3: its loss falls even so."""
    during(adapters, "lora", _without_last_gradient, stage=3)


@sabotage
def lost_language_gradient() -> None:
    """Lose the last rank's gradients beside a frozen vision tower under ZeRO-2."""
    during(adapters, "frozen_vision", _without_last_gradient, stage=2)


@sabotage
def half_an_adapter() -> None:
    """Train one of the two matrices of a LoRA adapter."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        import peft

        def freeze(model: Any, *_: Any) -> None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad &= "lora_A" not in name

        with wrapped(peft, "get_peft_model", freeze):
            yield

    during(adapters, "lora", fault)


@sabotage
def late_nan() -> None:
    """Lose all numbers in the first step on samples of usual size under ZeRO-2: the first loss is right even so."""

    def lose(engine: Any) -> None:
        for parameter in engine.module.parameters():
            held(parameter).data.fill_(float("nan"))

    during(sizes, "real_sizes", _with_each_step(lose), stage=2)


@sabotage
def moved_base() -> None:
    """Change one element of the base under a LoRA adapter, under ZeRO-2."""
    during(adapters, "lora", _with_each_step(_nudge("embed_tokens")), stage=2)


@sabotage
def partitioned_adapter() -> None:
    """Save a LoRA adapter under ZeRO-3 from the partitioned model: the classic mistake."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        with patch.object(DeepSpeedEngine, "_zero3_consolidated_16bit_state_dict", lambda self: self.module.state_dict()):
            yield

    during(adapters, "lora", fault, stage=3)


@sabotage
def unscaled_merge() -> None:
    """Merge a LoRA adapter under ZeRO-2 without its scale."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from peft.tuners.lora.layer import Linear

        original = Linear.get_delta_weight

        def unscaled(self: Any, adapter: str) -> torch.Tensor:
            return original(self, adapter) / self.scaling[adapter]

        with patch.object(Linear, "get_delta_weight", unscaled):
            yield

    during(adapters, "lora", fault, stage=2)


@sabotage
def thawed_vision() -> None:
    """Change one element of a frozen vision tower, rank 0's part under ZeRO-3."""
    during(adapters, "frozen_vision", _with_each_step(_nudge("patch_embed")), stage=3, rank=0)


def _without_mask(*_: Any) -> AbstractContextManager[Any]:
    original = torch.nn.functional.scaled_dot_product_attention

    def unmasked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any) -> torch.Tensor:
        return original(query, key, value, **{**kwargs, "attn_mask": None, "is_causal": False})

    return patch.object(torch.nn.functional, "scaled_dot_product_attention", unmasked)


@sabotage
def unmasked_attention() -> None:
    """Have torch's attention ignore its mask."""
    during(attention, "attention", _without_mask)


@sabotage
def unpadded_attention() -> None:
    """Have torch's attention take tokens of padding for others, which only a batch shows."""
    original = torch.nn.functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = kwargs.get("attn_mask")
        # The last token sees the first one, unless that is padding.
        if mask is not None and not bool((mask if mask.dtype == torch.bool else mask >= 0)[..., -1, 0].any()):
            kwargs |= {"attn_mask": torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()}
        return original(query, key, value, *args, **kwargs)

    during(attention, "attention", lambda *_: patch.object(torch.nn.functional, "scaled_dot_product_attention", attend))


@sabotage
def unmasked_kernels() -> None:
    """Have torch's attention ignore its mask while kernels are compared with the plain formula."""
    during(kernels, "kernels", _without_mask)


@sabotage
def blind_decoder() -> None:
    """Have cross attention in bf16 see half of what the encoder saw."""
    from transformers.models.trocr.modeling_trocr import TrOCRAttention

    original = TrOCRAttention.forward

    def blind(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen = kwargs.get("key_value_states")
        if seen is not None and seen.dtype == torch.bfloat16:
            kwargs["key_value_states"] = seen[:, : seen.shape[1] // 2]
        return original(self, *args, **kwargs)

    during(kernels, "kernels", lambda *_: patch.object(TrOCRAttention, "forward", blind))


def _wrong_convolution(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Have Conv3d in bf16 give something else, as some versions of cuDNN did."""
    original = torch.nn.functional.conv3d

    def wrong(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = original(values, *args, **kwargs)
        return change(found) if values.dtype == torch.bfloat16 else found

    during(kernels, "kernels", lambda *_: patch.object(torch.nn.functional, "conv3d", wrong))


@sabotage
def scaled_convolution() -> None:
    """Have Conv3d in bf16 give 1.1 times what is right."""
    _wrong_convolution(lambda found: found * 1.1)


@sabotage
def lost_channel() -> None:
    """Have Conv3d in bf16 lose one channel."""

    def lose(found: torch.Tensor) -> torch.Tensor:
        kept = torch.ones_like(found)
        kept[:, 7] = 0
        return found * kept

    _wrong_convolution(lose)


@sabotage
def unreduced_bucket() -> None:
    """Have DeepSpeed read one bucket before it is reduced, where reductions run beside the backward pass."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        import deepspeed

        left: list[bool] = []  # one reduction to skip, once an engine has overlap_comm

        def arm(made: Any, *args: Any, **kwargs: Any) -> None:
            left[:] = [True] if made[0].zero_overlap_comm() else []

        def skipping(original: runtime.Collective) -> runtime.Collective:
            def reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                if left and tensor.numel() > 1000:
                    left.clear()
                    return SimpleNamespace(wait=lambda: None)
                return original(tensor, *args, **kwargs)

            return reduce

        reductions = zero.changed_collectives(skipping, "reduce", "all_reduce", "reduce_scatter_fn")
        with wrapped(deepspeed, "initialize", arm), reductions:
            yield

    during(overlap, "overlap_comm", fault)


@sabotage
def longer_steps() -> None:
    """Take steps of ten times the length under ZeRO-3 on samples of usual size: the first loss is right even so."""
    during(sizes, "real_sizes", lambda *_: _optimizer_group(lr=10.0), stage=3)


@sabotage
def impatient() -> None:
    """Give compilers a second, as a machine that is too busy does."""
    offload.COMPILE_SHARE = 0.01


@sabotage
def other_decay() -> None:
    """Have DeepSpeedCPUAdam decay weights ten times as fast."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        def decay(_: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            for group in optimizer.param_groups:
                group["weight_decay"] *= 10

        with wrapped(DeepSpeedCPUAdam, "__init__", decay):
            yield

    during(offload, "offload", fault, stage=2)


@sabotage
def not_offloaded() -> None:
    """Lose what a configuration under ZeRO-3 says of offloading: everything stays on the device."""

    @contextlib.contextmanager
    def fault(*_: Any) -> Iterator[None]:
        import deepspeed

        initialize = deepspeed.initialize

        def without(*args: Any, config: dict[str, Any], **kwargs: Any) -> Any:
            kept = {name: value for name, value in config["zero_optimization"].items() if not name.startswith("offload")}
            return initialize(*args, config=config | {"zero_optimization": kept}, **kwargs)

        with patch.object(deepspeed, "initialize", without):
            yield

    during(offload, "offload", fault, stage=3)


def main(arguments: list[str]) -> int:
    """Install the sabotages before `--`, then run the smoke tests with the arguments after it."""
    from smoke_tests.__main__ import main as smoke

    where = arguments.index("--")
    for name in arguments[:where]:
        SABOTAGES[name]()
    return smoke(arguments[where + 1 :])


if __name__ == "__main__":
    endings.leave(main(sys.argv[1:]))
