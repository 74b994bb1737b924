"""InternVL3 as transformers has it: a vision transformer with a class token, and Qwen2.5 as the language model."""

from typing import Any

from . import Family, Token, Vision, qwen2_vl, resized

# Channels of the vision tower and of a head in it in published checkpoints, and of a head in the language model of 8B; see
# https://huggingface.co/OpenGVLab/InternVL3-8B-hf/blob/main/config.json.
VISION_WIDTH, VISION_HEAD, HEAD = 1024, 64, 128
SIZE = 56  # pixels, of a square that the synthetic checkpoint sees at once; 448 in published ones
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
)
CHAT_TEMPLATE = qwen2_vl.CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    text = {
        "model_type": "qwen2",
        "vocab_size": qwen2_vl.VOCABULARY_SIZE,
        "hidden_size": qwen2_vl.WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
    }
    vision = {
        "model_type": "internvl_vision",
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": [SIZE, SIZE],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_qk_norm": False,
        "norm_type": "layer_norm",
        "layer_scale_init_value": 0.1,
        "use_mean_pooling": True,
        "use_mask_token": False,
        "use_absolute_position_embeddings": True,
    }
    return {
        "config.json": {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "torch_dtype": "float32",
            "tie_word_embeddings": False,
            "image_token_id": token("<IMG_CONTEXT>"),
            "image_seq_length": _tokens(SIZE),
            "downsample_ratio": 0.5,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "text_config": text,
            "vision_config": vision,
        },
        "generation_config.json": {
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": _tokens(SIZE)},
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "InternVLProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 2,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "InternVLVideoProcessor",
            "size": {"height": SIZE, "width": SIZE},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "extra_special_tokens": {
                "context_image_token": "<IMG_CONTEXT>",
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "video_token": "<video>",
            },
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
            "chat_template": CHAT_TEMPLATE,
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }


def _tokens(size: int) -> int:
    """Return how many tokens a square of that many pixels is: patches, of which four become one."""
    return (size // 28) ** 2


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes, with heads as large as in the real models."""
    found = files(token, vision_width)
    size = 224
    language = {"hidden_size": 2 * HEAD, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"num_attention_heads": vision_width // VISION_HEAD, "image_size": [size, size]}
    pixels = {"size": {"height": size, "width": size}}
    length = {"image_seq_length": _tokens(size)}
    larger = resized(found, language, vision)
    return larger | {
        "config.json": larger["config.json"] | length,
        "processor_config.json": found["processor_config.json"] | length,
        "preprocessor_config.json": found["preprocessor_config.json"] | pixels,
        "video_preprocessor_config.json": found["video_preprocessor_config.json"] | pixels,
    }


FAMILY = Family(
    name="internvl",
    model_class="InternVLForConditionalGeneration",
    modules=("transformers.models.internvl.modeling_internvl",),
    layouts=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    first_tensor="vision_tower.embeddings.patch_embeddings.projection.weight",
    first_shape=(VISION_WIDTH, 3, 14, 14),
    missing_key="language_model.model.layers.1.self_attn.q_proj.bias",
    flipped_tensor="language_model.model.layers.0.mlp.down_proj.weight",
    processor_files=("tokenizer_config.json", "preprocessor_config.json"),
    synthetic_parameters=5_348_000,
    vocabulary_size=qwen2_vl.VOCABULARY_SIZE,
    special_tokens=SPECIAL_TOKENS,
    turn_end="<|im_end|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=4 * VISION_HEAD,
    width=VISION_WIDTH,
    head=HEAD,
    since="4.52.1",
    clear_scene=2,
    vision=Vision(tower="vision_tower.", attention=".attention", markup="<IMG_CONTEXT>", head=VISION_HEAD),
)
