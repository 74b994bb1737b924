"""The checkpoint that the smoke test makes for itself, and the ways in which a checkpoint is damaged.

The made checkpoint is a Qwen2.5-VL small enough for a laptop (11 M parameters, 44 MB in fp32) in which the one shape that
matters is real: `visual.patch_embed.proj.weight` is [1280, 3, 2, 14, 14].
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

VISION_WIDTH = 1280  # of every Qwen2.5-VL, and so of the patch embedding
PATCH_EMBED = "visual.patch_embed.proj.weight"
INDEX = "model.safetensors.index.json"

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 320

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(corpus: list[str]):
    """A byte-level BPE tokenizer with Qwen2's special tokens, trained on `corpus`; no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(CHAT_TOKENS) - len(VISION_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*CHAT_TOKENS[1:], *VISION_TOKENS],
        chat_template=CHAT_TEMPLATE,
    )


def _config(tokenizer, vision_width: int):
    from transformers import Qwen2_5_VLConfig

    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        torch_dtype="float32",
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        vision_token_id=token("<|vision_pad|>"),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_config={
            "depth": 1,
            "hidden_size": vision_width,
            "intermediate_size": 64,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 1,
            "window_size": 56,
            "fullatt_block_indexes": [0],
        },
    )


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Values that no default initialisation gives: a fresh model's biases of 0 and norms of 1 would hide half the damage."""
    values = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return values.mul_(0.1)
    if len(shape) == 1:
        return values.mul_(0.1).add_(1.0)
    return values.mul_(0.05 if "visual" in name else 0.2)


def make(path: Path, corpus: list[str], *, vision_width: int = VISION_WIDTH, seed: int = 0) -> None:
    """Write the made checkpoint with its tokenizer and image processor to the folder `path`, which appears whole or not at all.

    Three shards; weight and bias of one module never part, because the gloo race hides where they do. Raises OSError when the
    disk is full.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        tokenizer = _tokenizer(corpus)
        image_processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112, merge_size=1)
        Qwen2_5_VLProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(partial)
        config = _config(tokenizer, vision_width)
        config.save_pretrained(partial)
        GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(partial)
        with torch.device("meta"):
            shapes = AutoModelForImageTextToText.from_config(config).state_dict()
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: _random(name, meta.shape, generator) for name, meta in shapes.items()}
        shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
        for name, tensor in tensors.items():
            shards[0 if "patch_embed" in name else 1 if name.startswith("visual.") else 2][name] = tensor
        _write_shards(partial, shards)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_shards(path: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, filename)
    total = sum(tensor.numel() * tensor.element_size() for shard in shards for tensor in shard.values())
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


def shard_files(path: Path) -> list[Path]:
    """The safetensors files of the checkpoint in `path`, in a stable order. Raises FileNotFoundError when one is not there."""
    index = path / INDEX
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    files = [path / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is named by the checkpoint and is not there")
    return files


def locate(path: Path) -> dict[str, Path]:
    """Tensor name -> the shard that holds it, read from the shards' own headers rather than from the index."""
    where: dict[str, Path] = {}
    for file in shard_files(path):
        with safe_open(file, framework="pt") as shard:
            where |= dict.fromkeys(shard.keys(), file)
    return where


def element_count(path: Path) -> int:
    """How many numbers the checkpoint holds, from the headers alone."""
    total = 0
    for file in shard_files(path):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                size = 1
                for extent in shard.get_slice(name).get_shape():
                    size *= extent
                total += size
    return total


# The damage that the controls do. Each takes a folder with a copy of a sound checkpoint and spoils it.


def _edit(path: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = locate(path)[tensor]
    tensors = load_file(file)
    change(tensors)
    # The copy shares its shards with the original by hard link: replace the file, never write into it.
    fresh = file.with_suffix(".new")
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.replace(file)


def wrong_shape(path: Path) -> None:
    """The patch embedding keeps 7 of its 14 columns."""
    _edit(path, PATCH_EMBED, lambda tensors: tensors.update({PATCH_EMBED: tensors[PATCH_EMBED][..., :7].contiguous()}))


MISSING_KEY = "model.layers.1.self_attn.q_proj.bias"


def missing_key(path: Path) -> None:
    """One bias is gone from its shard and from the index."""
    _edit(path, MISSING_KEY, lambda tensors: tensors.__delitem__(MISSING_KEY))
    index = json.loads((path / INDEX).read_text())
    del index["weight_map"][MISSING_KEY]
    _replace_text(path / INDEX, json.dumps(index))


FLIPPED_TENSOR = "model.layers.0.mlp.down_proj.weight"


def flipped_bit(path: Path) -> None:
    """The lowest bit of the last number of one tensor is turned over."""

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FLIPPED_TENSOR].view(torch.int32).view(-1)[-1] ^= 1

    _edit(path, FLIPPED_TENSOR, flip)


def later_layout(path: Path) -> None:
    """The key layout of transformers 4.52 and later: `model.visual.*` and `model.language_model.*`."""

    def rename(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    index = json.loads((path / INDEX).read_text())
    for filename in set(index["weight_map"].values()):
        tensors = {rename(name): tensor for name, tensor in load_file(path / filename).items()}
        save_file(tensors, path / f"{filename}.new", metadata={"format": "pt"})
        (path / f"{filename}.new").replace(path / filename)
    index["weight_map"] = {rename(name): filename for name, filename in index["weight_map"].items()}
    _replace_text(path / INDEX, json.dumps(index))


def truncated_shard(path: Path) -> None:
    """The last shard ends 64 bytes early, as after a download that was cut."""
    file = shard_files(path)[-1]
    content = file.read_bytes()
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content[:-64])
    fresh.replace(file)


def _replace_text(file: Path, text: str) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text)
    fresh.replace(file)


def damaged_copy(source: Path, target: Path, damage: Callable[[Path], None]) -> Path:
    """A copy of `source` in `target` (hard links where they do) on which `damage` was done."""
    shutil.copytree(source, target, copy_function=os.link)
    damage(target)
    return target
