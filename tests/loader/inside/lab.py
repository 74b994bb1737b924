"""What the tests inside a stack share: ranks, checkpoints and what damages them."""

import contextlib
import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

DEADLINE = 120.0  # seconds that ranks have
INDEX = "model.safetensors.index.json"
PATCH_EMBED = "visual.patch_embed.proj.weight"
MISSING_KEY = "model.layers.1.self_attn.q_proj.bias"
FLIPPED_TENSOR = "model.layers.0.mlp.down_proj.weight"

os.environ.update(
    DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", LOCAL_SIZE="2", TOKENIZERS_PARALLELISM="false"
)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
# DeepSpeed's kernels ask triton for a GPU driver.
sys.modules["triton"] = None  # type: ignore[assignment]


def import_stack() -> None:
    """Import all that ranks need, and leave this process with one thread, so that it can fork."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    for name in ("deepspeed", "deepspeed.runtime.zero.stage3", "transformers.integrations.deepspeed"):
        importlib.import_module(name)
    importlib.import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    logging.disable(logging.NOTSET)
    # Its JIT build takes half a minute, and a killed build leaves a lock file on which later runs hang.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    importlib.import_module("transformers.utils.logging").disable_progress_bar()


def version(package: str) -> tuple[int, ...]:
    """The version of an installed package, to compare."""
    text = importlib.import_module("importlib.metadata").version(package)
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3])


# Ranks


@dataclass(frozen=True)
class Told:
    """What a rank came to: it returned a `value`, raised `error` (as type and text), or died."""

    value: Any = None
    error: str | None = None
    died: int | None = None


def ranks(work: Callable[..., Any], *arguments: Any, world: int = 2, backend: str = "gloo") -> list[Told]:
    """Run `work(rank, *arguments)` in `world` forked processes of one group, and return what each came to.

    Fails where they have not ended after DEADLINE; whatever happens, none is left.
    """
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_rank, args=(rank, world, folder, theirs, work, arguments))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            told = [Told(died=0)] * world
            waiting, until = dict(zip(pipes, range(world), strict=True)), time.monotonic() + DEADLINE
            while waiting:
                ready = multiprocessing.connection.wait(list(waiting), until - time.monotonic())
                assert ready, f"ranks {sorted(waiting.values())} did not end in {DEADLINE:.0f} s"
                for pipe in ready:
                    rank = waiting.pop(pipe)
                    with contextlib.suppress(EOFError):
                        told[rank] = pipe.recv()
            for process in processes:
                process.join(10)
            return [
                Told(died=process.exitcode) if one.died is not None else one
                for one, process in zip(told, processes, strict=True)
            ]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join(10)


def _rank(rank: int, world: int, folder: str, pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    # The first call after a fork replaces torch's thread pool; transformers 5, which loads in several threads, could make it
    # from two at once, of which one then finds none ("Invalid thread pool!").
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        import deepspeed

        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        pipe.send(Told(value=work(rank, *arguments)))
    except BaseException as error:  # noqa: BLE001 - the test is told, and judges
        traceback.print_exc()
        pipe.send(Told(error=f"{type(error).__name__}: {error}"))
    finally:
        # At once: a rank that waited for the others would keep its connections open, and they would hang on it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def values(told: list[Told]) -> list[Any]:
    """What the ranks returned; fails where one did not."""
    assert all(one.error is None and one.died is None for one in told), told
    return [one.value for one in told]


def errors(told: list[Told]) -> list[str]:
    """What the ranks raised; fails where one did not."""
    assert all(one.error is not None for one in told), told
    return [str(one.error) for one in told]


def zero_config(stage: int, *, bf16: bool = False) -> dict[str, Any]:
    """A DeepSpeed configuration that leaves nothing to a version's default."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": 1_000_000,
            "stage3_prefetch_bucket_size": 1_000_000,
            "stage3_param_persistence_threshold": 0,
        },
    }


def ask_for(stage: int, **options: Any) -> Any:
    """A HfDeepSpeedConfig, which the caller has to keep."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero_config(stage, **options))


# Checkpoints


def config(vision_width: int, **more: Any) -> dict[str, Any]:
    """config.json of a tiny Qwen2.5-VL, as transformers 4.49 writes it and all later versions read it."""
    vision = {"depth": 1, "hidden_size": vision_width, "intermediate_size": 64, "in_chans": 3, "window_size": 56}
    vision |= {"out_hidden_size": 64, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 1}
    vision |= {"fullatt_block_indexes": [0], "model_type": "qwen2_5_vl", "num_heads": max(2, vision_width // 80)}
    text = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "torch_dtype": "float32", "tie_word_embeddings": False}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "vision_start_token_id": 2, "vision_end_token_id": 3, "vision_token_id": 4}
    tokens |= {"image_token_id": 5, "video_token_id": 6}
    kind = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return (
        kind | text | tokens | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "vision_config": vision} | more
    )


def old_layout(name: str) -> str:
    """The key of transformers before 4.52, as the published checkpoints have it, for a key of any version."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def new_layout(name: str) -> str:
    """The key of transformers 4.52 and later for one in the old layout."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def make(path: Path, *, vision_width: int, seed: int = 0, **more: Any) -> Path:
    """Write a Qwen2.5-VL checkpoint of random values: none is what a default initialisation gives."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config(vision_width, **more)))
    with torch.device("meta"):
        shapes = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    tied = more.get("tie_word_embeddings", False)
    tensors = {
        old_layout(name): torch.randn(meta.shape, generator=generator) * 0.1 + (1.0 if len(meta.shape) == 1 else 0.0)
        for name, meta in shapes.items()
        if not (tied and name == "lm_head.weight")
    }
    shards: list[dict[str, Any]] = [{}, {}, {}]
    for name, tensor in tensors.items():
        # Weight and bias of a module stay together: the race on gloo hides where they do not.
        shards[0 if "patch_embed" in name else 1 if name.startswith("visual.") else 2][name] = tensor
    write(path, shards)
    return path


def write(path: Path, shards: list[dict[str, Any]]) -> None:
    """Write shards and their index."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def truth(path: Path) -> dict[str, Any]:
    """Every tensor of a sharded checkpoint, read by safetensors itself."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name in sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values())):
        found |= load_file(path / name)
    return found


def damaged(source: Path, target: Path, damage: Callable[[Path], None]) -> Path:
    """A copy of `source` with `damage` done to it."""
    shutil.copytree(source, target)
    damage(target)
    return target


def edit(path: Path, tensor: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of the shard that holds `tensor`."""
    from safetensors.torch import load_file, save_file

    file = path / json.loads((path / INDEX).read_text())["weight_map"][tensor]
    tensors = load_file(file)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def reindex(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Change the index."""
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def wrong_shape(path: Path) -> None:
    """The patch embedding keeps 7 of its 14 columns."""
    edit(path, PATCH_EMBED, lambda tensors: tensors.update({PATCH_EMBED: tensors[PATCH_EMBED][..., :7].contiguous()}))


def missing_key(path: Path) -> None:
    """One bias is in no shard and not in the index."""
    edit(path, MISSING_KEY, lambda tensors: tensors.__delitem__(MISSING_KEY))
    reindex(path, lambda weight_map: weight_map.__delitem__(MISSING_KEY))


def flipped_bit(path: Path) -> None:
    """The lowest bit of the last number of one tensor is turned over."""
    import torch

    def flip(tensors: dict[str, Any]) -> None:
        tensors[FLIPPED_TENSOR].view(torch.int32).view(-1)[-1] ^= 1

    edit(path, FLIPPED_TENSOR, flip)


def truncated(path: Path) -> None:
    """The last shard ends 64 bytes early, as after a download that was cut."""
    file = sorted(path.glob("model-*"))[-1]
    file.write_bytes(file.read_bytes()[:-64])


def later_layout(path: Path) -> None:
    """The keys of transformers 4.52 and later."""
    tensors = truth(path)
    write(path, [{new_layout(name): tensor for name, tensor in tensors.items()}])
    for file in path.glob("model-*-of-00003*"):
        file.unlink()
