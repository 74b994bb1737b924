"""Qwen3-VL: features of several vision layers enter the language model, and keys are those of transformers 4.52 and later."""

from typing import Any

from . import Family, Token, Vision, qwen2_vl, resized

# Channels of the vision tower in published checkpoints up to 8B, and of a head in it and in the language model; see
# https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct/blob/main/config.json.
VISION_WIDTH, VISION_HEAD, HEAD = 1152, 72, 128
PATCH = 16


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return small_files("qwen3_vl", "Qwen3VLForConditionalGeneration", token, vision_width, {})


def small_files(
    model_type: str, architecture: str, token: Token, vision_width: int, language: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the small files in the format of the Qwen team, with what else is said of the `language` model."""
    found = qwen2_vl.small_files(model_type, "Qwen3VLProcessor", token, {})
    text = {
        "model_type": f"{model_type}_text",
        "vocab_size": qwen2_vl.VOCABULARY_SIZE,
        "hidden_size": qwen2_vl.WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_theta": 5000000.0,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [2, 3, 3], "rope_type": "default"},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
    }
    vision = {
        "model_type": model_type,
        "depth": 2,
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "num_heads": 16,
        "in_channels": 3,
        "out_hidden_size": qwen2_vl.WIDTH,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": 1,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    kept = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = {name: found["config.json"][name] for name in kept} | {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
        "text_config": text | language,
        "vision_config": vision,
    }
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 64 * 64, "longest_edge": 112 * 112},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    video = preprocessor | {"video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    return found | {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "video_preprocessor_config.json": video,
    }


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes."""
    return realistic(files(token, vision_width), vision_width)


def realistic(found: dict[str, dict[str, Any]], vision_width: int) -> dict[str, dict[str, Any]]:
    """Return small files with merged patches, larger images, longer texts, and heads as large as in the real models."""
    width = 2 * HEAD
    vision = {"spatial_merge_size": 2, "num_heads": vision_width // VISION_HEAD, "out_hidden_size": width}
    language = {
        "hidden_size": width,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    }
    larger = {"merge_size": 2, "size": {"shortest_edge": 64 * 64, "longest_edge": 448 * 448}}
    return resized(found, language, vision) | {
        "preprocessor_config.json": found["preprocessor_config.json"] | larger,
        "video_preprocessor_config.json": found["video_preprocessor_config.json"] | larger,
    }


FAMILY = Family(
    name="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    modules=("transformers.models.qwen3_vl.modeling_qwen3_vl",),
    layouts=(),
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    first_tensor="model.visual.patch_embed.proj.weight",
    first_shape=(VISION_WIDTH, 3, 2, PATCH, PATCH),
    missing_key="model.visual.blocks.1.attn.qkv.bias",
    flipped_tensor="model.language_model.layers.0.mlp.down_proj.weight",
    processor_files=("tokenizer_config.json", "preprocessor_config.json"),
    synthetic_parameters=15_700_000,
    vocabulary_size=qwen2_vl.VOCABULARY_SIZE,
    special_tokens=qwen2_vl.FAMILY.special_tokens,
    turn_end="<|im_end|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=2 * VISION_HEAD,
    width=VISION_WIDTH,
    trained_width=320,
    clear_scene=8,
    head=HEAD,
    since="4.57",
    vision=Vision(
        tower="model.visual.",
        attention=".attn",
        markup="<|vision_start|><|image_pad|><|vision_end|>",
        head=VISION_HEAD,
    ),
)
