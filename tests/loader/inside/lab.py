"""Helpers of the tests inside a stack: ranks, synthetic checkpoints and damage to them."""

import contextlib
import importlib
import importlib.util
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

DEADLINE = 120.0  # seconds for all ranks to end
INDEX = "model.safetensors.index.json"
PATCH_EMBED = "visual.patch_embed.proj.weight"
MISSING_KEY = "model.layers.1.self_attn.q_proj.bias"
FLIPPED_TENSOR = "model.layers.0.mlp.down_proj.weight"

os.environ.update(
    DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", LOCAL_SIZE="2", TOKENIZERS_PARALLELISM="false"
)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
# DeepSpeed's kernels query triton for a GPU driver.
sys.modules["triton"] = None  # type: ignore[assignment]


def import_stack() -> None:
    """Import everything that ranks need, with one thread in this process, so that it can fork."""
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
    """Return the version of an installed package, for comparisons."""
    text = importlib.import_module("importlib.metadata").version(package)
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3])


# Ranks


@dataclass(frozen=True)
class Result:
    """The result of a rank: the `value` it returned, the `error` it raised (type and text), or its exit code if it died."""

    value: Any = None
    error: str | None = None
    died: int | None = None


def ranks(work: Callable[..., Any], *arguments: Any, world: int = 2, backend: str = "gloo") -> list[Result]:
    """Run `work(rank, *arguments)` in `world` forked processes of one group and return their results.

    Raises AssertionError if they have not ended after DEADLINE. Leaves no process behind.
    """
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=_rank, args=(rank, world, folder, sender, work, arguments, backend))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            results = [Result(died=0)] * world
            waiting, until = dict(zip(pipes, range(world), strict=True)), time.monotonic() + DEADLINE
            while waiting:
                ready = multiprocessing.connection.wait(list(waiting), until - time.monotonic())
                assert ready, f"ranks {sorted(waiting.values())} did not end in {DEADLINE:.0f} s"
                for pipe in [pipe for pipe in waiting if pipe in ready]:
                    rank = waiting.pop(pipe)
                    with contextlib.suppress(EOFError):
                        results[rank] = pipe.recv()
            for process in processes:
                process.join(10)
            return [
                Result(died=process.exitcode) if one.died is not None else one
                for one, process in zip(results, processes, strict=True)
            ]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join(10)


def _rank(
    rank: int, world: int, folder: str, pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...], backend: str
) -> None:
    import torch

    # The first call after a fork replaces torch's thread pool; transformers 5, which loads in several threads, could make it
    # from two at once, of which one then finds none ("Invalid thread pool!").
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        import deepspeed

        torch.distributed.init_process_group(
            backend, init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        pipe.send(Result(value=work(rank, *arguments)))
    except BaseException as error:  # noqa: BLE001 - the test decides whether it is expected
        traceback.print_exc()
        pipe.send(Result(error=f"{type(error).__name__}: {error}"))
    finally:
        # Immediately: a rank that waits for the others keeps its connections open, and they would hang.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def values(results: list[Result]) -> list[Any]:
    """Return what the ranks returned. Raises AssertionError if one did not return."""
    assert all(one.error is None and one.died is None for one in results), results
    return [one.value for one in results]


def errors(results: list[Result]) -> list[str]:
    """Return what the ranks raised. Raises AssertionError if one did not raise."""
    assert all(one.error is not None for one in results), results
    return [str(one.error) for one in results]


def zero_config(stage: int, *, bf16: bool = False) -> dict[str, Any]:
    """Return a DeepSpeed configuration that does not depend on defaults of the installed version."""
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


def request_zero(stage: int, **options: Any) -> Any:
    """Return a HfDeepSpeedConfig, to which the caller has to keep a reference."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero_config(stage, **options))


# Checkpoints


def config(vision_width: int, **more: Any) -> dict[str, Any]:
    """Return config.json of a tiny Qwen2.5-VL, as transformers 4.49 writes it and all later versions read it."""
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "in_chans": 3,
        "window_size": 56,
    }
    vision |= {"out_hidden_size": 64, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 1}
    vision |= {"fullatt_block_indexes": [0], "model_type": "qwen2_5_vl", "num_heads": max(2, vision_width // 80)}
    text: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "torch_dtype": "float32", "tie_word_embeddings": False}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "vision_start_token_id": 2, "vision_end_token_id": 3, "vision_token_id": 4}
    tokens |= {"image_token_id": 5, "video_token_id": 6}
    kind = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return (
        kind | text | tokens | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "vision_config": vision} | more
    )


def old_layout(name: str) -> str:
    """Return the key in the layout of published checkpoints and transformers before 4.52, for a key of any version."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def new_layout(name: str) -> str:
    """Return the key in the layout of transformers 4.52 and later, for a key in the old layout."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def write_checkpoint(path: Path, *, vision_width: int, seed: int = 0, **more: Any) -> Path:
    """Write a Qwen2.5-VL checkpoint of random values that no default initialisation gives."""
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
        # Weight and bias of a module must be in one shard: otherwise the race on gloo does not show.
        shards[0 if "patch_embed" in name else 1 if name.startswith("visual.") else 2][name] = tensor
    write_shards(path, shards)
    return path


def write_shards(path: Path, shards: list[dict[str, Any]]) -> None:
    """Write shards and their index."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def stored_tensors(path: Path) -> dict[str, Any]:
    """Return all tensors of a sharded checkpoint, as safetensors itself reads them."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name in sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values())):
        found |= load_file(path / name)
    return found


def damaged(source: Path, target: Path, damage: Callable[[Path], object]) -> Path:
    """Return a copy of `source` to which `damage` was applied."""
    shutil.copytree(source, target)
    damage(target)
    return target


def edit(path: Path, tensor: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of the shard that has `tensor`."""
    from safetensors.torch import load_file, save_file

    file = path / json.loads((path / INDEX).read_text())["weight_map"][tensor]
    tensors = load_file(file)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def reindex(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the index."""
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def signed(path: Path, keys: Path) -> Path:
    """Sign a checkpoint with a new key, as model.sig in it, and return the public key's file."""
    library = importlib.util.find_spec("model_signing")
    assert library is not None
    assert library.origin is not None
    tools = Path(library.origin).parents[4] / "bin/python"
    command = [tools, Path(__file__).with_name("sign.py"), path, keys]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 0, ended.stderr
    return keys / "public.pem"


def wrong_shape(path: Path) -> None:
    """Cut the patch embedding to 7 of its 14 columns."""
    edit(path, PATCH_EMBED, lambda tensors: tensors.update({PATCH_EMBED: tensors[PATCH_EMBED][..., :7].contiguous()}))


def missing_key(path: Path) -> None:
    """Remove one bias from its shard and from the index."""
    edit(path, MISSING_KEY, lambda tensors: tensors.__delitem__(MISSING_KEY))
    reindex(path, lambda weight_map: weight_map.__delitem__(MISSING_KEY))


def flipped_bit(path: Path) -> None:
    """Flip the lowest bit of the last element of one tensor."""
    import torch

    def flip(tensors: dict[str, Any]) -> None:
        tensors[FLIPPED_TENSOR].view(torch.int32).view(-1)[-1] ^= 1

    edit(path, FLIPPED_TENSOR, flip)


def truncated(path: Path) -> None:
    """Cut 64 bytes from the last shard, as an interrupted download does."""
    file = sorted(path.glob("model-*"))[-1]
    file.write_bytes(file.read_bytes()[:-64])


def later_layout(path: Path) -> None:
    """Rename all keys to the layout of transformers 4.52 and later."""
    tensors = stored_tensors(path)
    write_shards(path, [{new_layout(name): tensor for name, tensor in tensors.items()}])
    for file in path.glob("model-*-of-00003*"):
        file.unlink()
