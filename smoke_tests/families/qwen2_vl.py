"""Qwen2-VL."""

from typing import Any

from . import Family, Token, Vision, resized

VOCABULARY_SIZE = 320
# Of the synthetic checkpoint's language model.
WIDTH = 64
# Channels of an attention head in language model and vision tower, and how many pairs of them turn with time, height and width,
# in the published checkpoints of all sizes; see https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json.
HEAD, VISION_HEAD = 128, 80
ROPE_SCALING = {"type": "mrope", "mrope_section": [16, 24, 24]}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    vision = {
        "depth": 1,
        "embed_dim": vision_width,
        "hidden_size": WIDTH,
        "mlp_ratio": 1,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 1,
    }
    return small_files("qwen2_vl", "Qwen2VLProcessor", token, vision)


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes."""
    return realistic(files(token, vision_width), vision_width)


def realistic(found: dict[str, dict[str, Any]], vision_width: int) -> dict[str, dict[str, Any]]:
    """Return small files with merged patches, larger images, longer texts, and heads as large as in the real models.

    The size of a head decides which kernel computes attention. `vision_width` is a multiple of a vision head's.
    """
    width, of_vision = 2 * HEAD, found["config.json"]["vision_config"]
    vision = {"spatial_merge_size": 2, "depth": 2, "num_heads": vision_width // VISION_HEAD}
    vision |= {name: width for name in ("out_hidden_size", "hidden_size") if of_vision.get(name) == WIDTH}
    language = {"hidden_size": width, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": ROPE_SCALING}
    larger = {"merge_size": 2, "max_pixels": 448 * 448}
    return resized(found, language, vision) | {"preprocessor_config.json": found["preprocessor_config.json"] | larger}


def small_files(model_type: str, processor: str, token: Token, vision: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the small files in the format of the Qwen team, which every version of transformers has to read."""
    return {
        "config.json": {
            "model_type": model_type,
            "torch_dtype": "float32",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": False,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "vision_token_id": token("<|vision_pad|>"),
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_config": vision,
        },
        "generation_config.json": {
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": processor,
            "min_pixels": 56 * 56,
            "max_pixels": 112 * 112,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 1,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "additional_special_tokens": list(FAMILY.special_tokens[1:]),
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "split_special_tokens": False,
            "model_max_length": 512,
            "chat_template": CHAT_TEMPLATE,
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }


FAMILY = Family(
    name="qwen2_vl",
    model_class="Qwen2VLForConditionalGeneration",
    modules=("transformers.models.qwen2_vl.modeling_qwen2_vl",),
    layouts=(("visual.", "model.visual."), ("model.", "model.language_model.")),
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    first_tensor="visual.patch_embed.proj.weight",
    first_shape=(1280, 3, 2, 14, 14),
    missing_key="model.layers.1.self_attn.q_proj.bias",
    flipped_tensor="model.layers.0.mlp.down_proj.weight",
    processor_files=("tokenizer_config.json", "preprocessor_config.json"),
    synthetic_parameters=13_200_000,
    vocabulary_size=VOCABULARY_SIZE,
    special_tokens=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    turn_end="<|im_end|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=2 * VISION_HEAD,
    width=1280,
    trained_width=320,
    head=HEAD,
    since="4.45",
    vision=Vision(tower="visual.", attention=".attn", markup="<|vision_start|><|image_pad|><|vision_end|>", head=VISION_HEAD),
)
