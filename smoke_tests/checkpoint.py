"""The checkpoint that the smoke test makes for itself, and the ways in which a checkpoint is damaged.

The made checkpoint is small enough for a laptop (some 12 M parameters, 50 MB in fp32) and looks like a published one of its
family. The one shape that matters is real: that of the patch embedding.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from smokehouse_loader import inspect_checkpoint

from .families import Family

INDEX = "model.safetensors.index.json"


def _tokenizer(family: Family, corpus: list[str]) -> Any:
    """A byte-level BPE tokenizer with the family's special tokens, trained on `corpus`; no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=family.vocabulary_size - len(family.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(family.special_tokens))
    return tokenizer


def _random(family: Family, name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Values that no default initialisation gives: a fresh model's biases of 0 and norms of 1 would hide half the damage."""
    values = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return values.mul_(0.1)
    if len(shape) == 1:
        return values.mul_(0.1).add_(1.0)
    return values.mul_(0.05 if family.is_vision(name) else 0.2)


def make(path: Path, family: Family, corpus: list[str], *, vision_width: int | None = None, seed: int = 0) -> None:
    """Write the made checkpoint with its tokenizer and image processor to the folder `path`, which appears whole or not at all.

    Three shards, with the keys of published checkpoints; weight and bias of one module never part, because the gloo race hides
    where they do. The vision tower is as wide as the family's real ones, or `vision_width`. Raises OSError when the disk is
    full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write_small_files(partial, family, corpus, vision_width or family.patch_shape[0])
        shapes = model_shapes(partial, family)
        generator = torch.Generator().manual_seed(seed)
        shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
        patch_module = family.patch_embedding.rpartition(".")[0]
        for name, shape in shapes.items():
            number = 0 if name.startswith(patch_module) else 1 if family.is_vision(name) else 2
            shards[number][name] = _random(family, name, shape, generator)
        _write_shards(partial, shards)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_small_files(path: Path, family: Family, corpus: list[str], vision_width: int) -> None:
    tokenizer = _tokenizer(family, corpus)
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in family.files(tokenizer.token_to_id, vision_width).items():
        (path / name).write_text(json.dumps(content, indent=1))


def model_shapes(path: Path, family: Family) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every tensor of the model that `config.json` in `path` describes, without its weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
    return {family.published(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _write_shards(path: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, filename)
    total = sum(tensor.numel() * tensor.element_size() for shard in shards for tensor in shard.values())
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


# The damage that the controls do. Each takes a folder with a copy of a sound checkpoint and spoils it.


def _edit(path: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = inspect_checkpoint(path).tensors[tensor].file
    tensors = load_file(file)
    change(tensors)
    # The copy shares its shards with the original by hard link: replace the file, never write into it.
    fresh = file.with_suffix(".new")
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.replace(file)


def wrong_shape(path: Path, family: Family) -> None:
    """The patch embedding keeps half of its columns."""
    name = family.patch_embedding
    _edit(path, name, lambda tensors: tensors.update({name: tensors[name][..., : wrong_patch_shape(family)[-1]].contiguous()}))


def wrong_patch_shape(family: Family) -> list[int]:
    """The shape that `wrong_shape` leaves."""
    return [*family.patch_shape[:-1], family.patch_shape[-1] // 2]


def missing_key(path: Path, family: Family) -> None:
    """One bias is gone from its shard and from the index."""
    _edit(path, family.missing_key, lambda tensors: tensors.__delitem__(family.missing_key))
    index = json.loads((path / INDEX).read_text())
    del index["weight_map"][family.missing_key]
    _replace_text(path / INDEX, json.dumps(index))


def flipped_bit(path: Path, family: Family) -> None:
    """The lowest bit of the last number of one tensor is turned over."""

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[family.flipped_tensor].view(torch.int32).view(-1)[-1] ^= 1

    _edit(path, family.flipped_tensor, flip)


def later_layout(path: Path, family: Family) -> None:
    """The keys of transformers 4.52 and later."""
    index = json.loads((path / INDEX).read_text())
    for filename in set(index["weight_map"].values()):
        tensors = {family.later(name): tensor for name, tensor in load_file(path / filename).items()}
        save_file(tensors, path / f"{filename}.new", metadata={"format": "pt"})
        (path / f"{filename}.new").replace(path / filename)
    index["weight_map"] = {family.later(name): filename for name, filename in index["weight_map"].items()}
    _replace_text(path / INDEX, json.dumps(index))


def truncated_shard(path: Path, family: Family) -> None:
    """The last shard ends 64 bytes early, as after a download that was cut."""
    file = inspect_checkpoint(path).files[-1]
    content = file.read_bytes()
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content[:-64])
    fresh.replace(file)


def _replace_text(file: Path, text: str) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text)
    fresh.replace(file)


Damage = Callable[[Path, Family], None]


def damaged_copy(source: Path, target: Path, family: Family, damage: Damage) -> Path:
    """A copy of `source` in `target` (hard links where they do) on which `damage` was done."""
    shutil.copytree(source, target, copy_function=os.link)
    damage(target, family)
    return target
