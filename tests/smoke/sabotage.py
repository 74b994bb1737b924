"""Runs the smoke tests with something real broken under them: `python tests/smoke/sabotage.py NAME... -- ARGUMENTS`.

Each sabotage breaks what a check looks at: a collective, a weight in memory, a file, a function of transformers or DeepSpeed.
None makes a check say anything. It is done while the check runs and undone after it, so that checks that look at other things
still pass; ranks are forked, and so inherit what is patched here. For that the parent must have one thread only: give it
OMP_NUM_THREADS=1, as torch is imported here before the smoke tests can see to it.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from smoke_tests import checks, controls, families, fixes, stack
from smoke_tests.checks import Bench
from smoke_tests.fixtures import damage, samples, tiny_checkpoint
from smoke_tests.ranks import supervisor
from smokehouse_loader import zero

Fault = Callable[[Bench], AbstractContextManager[Any]]
SABOTAGES: dict[str, Callable[[], None]] = {}


def sabotage(install: Callable[[], None]) -> Callable[[], None]:
    """Enter a sabotage in the table under its function's name."""
    SABOTAGES[install.__name__] = install
    return install


def during(step: str, fault: Fault, *, stage: int | None = None, rank: int | None = None, of: ModuleType = checks) -> None:
    """Have `fault` in force while `step` runs, on one rank or all and in one stage or all."""
    run = getattr(of, step)

    @functools.wraps(run)
    def broken(bench: Bench) -> Any:
        hit = stage in (None, bench.stage) and rank in (None, bench.rank)
        with fault(bench) if hit else contextlib.nullcontext():
            return run(bench)

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
    """The elements that this rank holds of a parameter."""
    return zero.held(parameter)[0]


# the checks


@sabotage
def edited_file() -> None:
    """A Python file of transformers is not the one that was installed, on rank 1: RECORD has another digest for it."""
    read_text = Path.read_text

    def edited(self: Path, *args: Any, **kwargs: Any) -> str:
        text = read_text(self, *args, **kwargs)
        return text.replace("modeling_qwen2_5_vl.py,sha256=", "modeling_qwen2_5_vl.py,sha256=_")

    during("versions", lambda _: patch.object(Path, "read_text", edited), rank=1)


@sabotage
def collectives() -> None:
    """Each collective gets one number wrong on rank 1."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        import deepspeed.comm as comm

        def spoil(_: Any, output: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            output[5] += 1

        with contextlib.ExitStack() as stack:
            for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
                stack.enter_context(wrapped(comm, name, spoil))
            yield

    during("collectives", fault, rank=1)


@sabotage
def dropped_config() -> None:
    """The `HfDeepSpeedConfig` is gone before ZeRO-3 loads: the classic mistake of not keeping a reference to it."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        yield

    during("load", fault, stage=3)


@sabotage
def changed_element() -> None:
    """One element of one parameter differs from the file on rank 1 under ZeRO-3."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        elements = held(bench.model.model.norm.weight)
        before = elements[3].item()
        elements[3] = before + 2**-12
        try:
            yield
        finally:
            elements[3] = before

    during("weights", fault, stage=3, rank=1)


@sabotage
def lost_key() -> None:
    """What loads under ZeRO-2 is a checkpoint that lacks a key."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        damaged = damage.damaged_copy(bench.source, bench.work / f"lost-key-{bench.rank}", bench.family, damage.missing_key)
        bench.source, source = damaged, bench.source
        try:
            yield
        finally:
            bench.source = source

    during("load", fault, stage=2)


@sabotage
def negated_norm() -> None:
    """ZeRO-3's engine generates with half of a norm negated, which is the part that rank 1 holds."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        import deepspeed

        def negate(_: Any, *args: Any, **kwargs: Any) -> None:
            held(bench.model.model.norm.weight).neg_()

        with wrapped(deepspeed, "initialize", negate):
            yield
        held(bench.model.model.norm.weight).neg_()

    during("generate", fault, stage=3, rank=1)


@sabotage
def detached_vision() -> None:
    """Under ZeRO-3 the vision tower's output is cut from the graph: the loss still falls."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        hook = bench.engine.module.visual.register_forward_hook(lambda _module, _inputs, output: output.detach())
        try:
            yield
        finally:
            hook.remove()

    during("train", fault, stage=3)


@sabotage
def no_learning() -> None:
    """Under ZeRO-2 the learning rate is 0."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        for group in bench.engine.optimizer.param_groups:
            group["lr"] = 0.0
        yield

    during("train", fault, stage=2)


@sabotage
def no_learning_in_plain_run() -> None:
    """The single process that everything is compared with does not learn."""

    def fault(_: Bench) -> AbstractContextManager[Any]:
        return patch.object(torch.optim, "AdamW", lambda parameters, **_: torch.optim.SGD(parameters, lr=0.0))

    during("plain", fault)


@sabotage
def stuttering() -> None:
    """The single process generates one token again and again, as a model would whose words are all alike."""

    def fault(bench: Bench) -> AbstractContextManager[Any]:
        def repeat(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            tokens[0, -checks.NEW_TOKENS :] = 5

        return wrapped(bench.model_class(), "generate", repeat)

    during("plain", fault)


@sabotage
def clipped_gradients() -> None:
    """DeepSpeed clips gradients, as it does by default from 0.19.4, and the single process does not."""
    original = stack.config

    def config(*args: Any) -> dict[str, Any]:
        return original(*args) | {"gradient_clipping": 0.1}

    stack.config = config


@sabotage
def lost_optimizer_states() -> None:
    """The engine checkpoint loads without its optimizer states."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        load = DeepSpeedEngine.load_checkpoint

        def without(self: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self, *args, **kwargs, load_optimizer_states=False)

        with patch.object(DeepSpeedEngine, "load_checkpoint", without):
            yield

    during("resume", fault)


def _spoil_weights(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    state["model.norm.weight"].data[0] += 1
    torch.save(state, file)


@sabotage
def spoiled_consolidation() -> None:
    """One element is wrong in what ZeRO-2 writes as 16-bit weights and ZeRO-3 as 32-bit weights."""

    @contextlib.contextmanager
    def half(bench: Bench) -> Iterator[None]:
        from deepspeed.runtime.engine import DeepSpeedEngine

        def spoil(_saved: Any, _self: Any, folder: str) -> None:
            _spoil_weights(Path(folder))

        with wrapped(DeepSpeedEngine, "save_16bit_model", spoil):
            yield

    @contextlib.contextmanager
    def full(bench: Bench) -> Iterator[None]:
        import deepspeed.utils.zero_to_fp32 as converter

        def spoil(_written: Any, _source: str, target: str, **_: Any) -> None:
            _spoil_weights(Path(target))

        with wrapped(converter, "convert_zero_checkpoint_to_fp32_state_dict", spoil):
            yield

    during("half_precision", half, stage=2, rank=0)
    during("consolidated", full, stage=3)


@sabotage
def bf16_off() -> None:
    """In the bf16 run one element of one tensor loads wrong on rank 1."""

    def fault(bench: Bench) -> AbstractContextManager[Any]:
        def spoil(loaded: Any, *args: Any, **kwargs: Any) -> None:
            held(loaded[0].model.norm.weight)[0] += 1

        return wrapped(bench.model_class(), "from_pretrained", spoil)

    during("half_precision", fault, rank=1)


@sabotage
def gathered_elements() -> None:
    """ZeRO-3 keeps small parameters whole once they were gathered, as it does by default."""
    original = stack.config

    def config(*args: Any) -> dict[str, Any]:
        found = original(*args)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 100_000
        return found

    during("generate", lambda _: patch.object(stack, "config", config), stage=3)


@sabotage
def labelled_dummy() -> None:
    """The dummy image of the cure for mixed modality counts in the loss."""
    original = samples.with_dummy_image

    def labelled(*args: Any) -> dict[str, torch.Tensor]:
        found = original(*args)
        return found | {"labels": found["input_ids"]}

    during("mixed_modality_cure", lambda _: patch.object(samples, "with_dummy_image", labelled))


@sabotage
def frozen_text_rank() -> None:
    """Mixed modality hangs, as it is reported to do on NCCL: the rank with text only stops for good."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGSTOP)
        yield

    supervisor.MAY_END_DEADLINE = 3.0
    during("mixed_modality", fault, rank=1)


@sabotage
def obliging_data() -> None:
    """Data loaders that give text-only ranks a dummy image: with labels under ZeRO-2, rightly without under ZeRO-3."""

    @contextlib.contextmanager
    def fault(bench: Bench) -> Iterator[None]:
        original = checks.mixed_sample

        def sample(bench: Bench, rank: int) -> dict[str, torch.Tensor]:
            found = samples.with_dummy_image(bench.family, bench.processor, original(bench, rank))
            return found if bench.stage == 3 else found | {"labels": found["input_ids"]}

        with patch.object(checks, "mixed_sample", sample):
            yield

    during("mixed_modality", fault, rank=1)


@sabotage
def wrong_tower() -> None:
    """The family's module names a vision tower that the model does not have."""
    right = families.get

    def wrong(name: str) -> families.Family:
        return dataclasses.replace(right(name), vision_tower="vision.")

    families.get = wrong


@sabotage
def raising_rank() -> None:
    """One rank raises in the middle of a check, and leaves the other alone with its collectives."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        raise RuntimeError("rank 1 has had enough")
        yield

    during("train", fault, rank=1)


@sabotage
def unwritable_checkpoint() -> None:
    """The disk has no room for the made checkpoint."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model-00001-of-00003.safetensors")

    tiny_checkpoint.save_file = full


# what upstream fixed, broken again


@sabotage
def unwaited_gathers() -> None:
    """DeepSpeed waits for the last gather only, as it did before 0.19.8."""

    @contextlib.contextmanager
    def fault(_: Bench) -> Iterator[None]:
        from deepspeed.runtime.zero.partition_parameters import Init

        gather_all = Init._allgather_params_coalesced

        def unwaited(self: Any, *args: Any, **kwargs: Any) -> Any:
            launched: list[Any] = []

            def gather(original: stack.Collective) -> stack.Collective:
                def launch(*args: Any, **kwargs: Any) -> Any:
                    launched.append(original(*args, **kwargs))
                    return SimpleNamespace(wait=lambda own=launched[-1]: own.wait() if own is launched[-1] else None)

                return launch

            with zero.changed_collectives(gather, *zero.GATHERS):
                return gather_all(self, *args, **kwargs)

        with patch.object(Init, "_allgather_params_coalesced", unwaited):
            yield

    during("late_gathers", fault, of=fixes)


@sabotage
def swapped_layers() -> None:
    """transformers takes the two layers of the language model for each other: no key is missing, and no shape is wrong."""

    def fault(_: Bench) -> AbstractContextManager[Any]:
        from transformers import core_model_loading

        rename = core_model_loading.rename_source_key

        def swapped(*args: Any, **kwargs: Any) -> Any:
            name, *rest = rename(*args, **kwargs)
            number = {"0": "1", "1": "0"}
            return re.sub(r"(?<=language_model\.layers\.)[01]", lambda found: number[found[0]], name), *rest

        return patch.object(core_model_loading, "rename_source_key", swapped)

    during("both_key_layouts", fault, of=fixes)


# the controls: what they would need in order to see is taken from them


@sabotage
def no_damage() -> None:
    """Every damaged checkpoint is sound."""
    damage.DAMAGES.update(dict.fromkeys(damage.DAMAGES, lambda *_: None))


@sabotage
def no_seed_failure() -> None:
    """The two ways to the seed failure do not lead there any more."""

    @contextlib.contextmanager
    def no_init(_: Bench) -> Iterator[None]:
        import deepspeed

        with patch.object(deepspeed.zero, "Init", lambda **_: contextlib.nullcontext()):
            yield

    during("seed_failure_zero_init", no_init, of=controls)
    tolerant = patch.object(torch.nn.Module, "load_state_dict", lambda self, state: None)
    during("seed_failure_load_state_dict", lambda _: tolerant, of=controls)


@sabotage
def no_race() -> None:
    """Gathers are waited for where the control wants them not to be."""
    controls.RACE_TRIES = 3
    during("gloo_race", lambda _: zero.waited_gathers(), of=controls)


@sabotage
def blind_comparison() -> None:
    """The comparison with the file finds every tensor equal."""
    controls.RACE_TRIES = 3
    for module in (checks, controls, fixes):
        module.wrong_tensors = lambda *_: {}


def main(arguments: list[str]) -> int:
    """Do the sabotages that are named before `--`, then run the smoke tests with the arguments behind it."""
    from smoke_tests.__main__ import main as smoke

    where = arguments.index("--")
    for name in arguments[:where]:
        SABOTAGES[name]()
    return smoke(arguments[where + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
