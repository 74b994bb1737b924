"""GOT-OCR 2.0: reads pages. Its published checkpoint has no chat template, and its processor takes no text without a page."""

from collections.abc import Sequence
from typing import Any

from . import Family, Inputs, Token, Vision, qwen2_vl, resized

# Channels of the vision tower, and of a head in it and in the language model; see
# https://huggingface.co/stepfun-ai/GOT-OCR-2.0-hf/blob/main/config.json.
VISION_WIDTH, HEAD = 768, 64
SIZE = 128  # pixels of a page of the synthetic checkpoint; 1,024 in the published one
PATCH = 16
SYSTEM = "You should follow the instructions carefully and explain your answers in detail."
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    text = {
        "model_type": "qwen2",
        "vocab_size": qwen2_vl.VOCABULARY_SIZE,
        "hidden_size": qwen2_vl.WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
    }
    vision = {
        "hidden_size": vision_width,
        "output_channels": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 12 if vision_width % 12 == 0 else 4,
        "num_channels": 3,
        "image_size": SIZE,
        "patch_size": PATCH,
        "window_size": 7,
        "global_attn_indexes": [0],
        "mlp_dim": 64,
        "qkv_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
    }
    return {
        "config.json": {
            "architectures": ["GotOcr2ForConditionalGeneration"],
            "model_type": "got_ocr2",
            "torch_dtype": "float32",
            "tie_word_embeddings": True,
            "image_token_index": token("<imgpad>"),
            "image_seq_length": _tokens(SIZE),
            "text_config": text,
            "vision_config": vision,
        },
        "generation_config.json": {
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "GotOcr2Processor",
            "size": {"height": SIZE, "width": SIZE},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "GotOcr2Processor",
            "model_input_names": ["input_ids", "attention_mask"],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    }


def _tokens(size: int) -> int:
    """Return how many tokens a page of that many pixels a side is: the projector makes one of 4 x 4 patches."""
    return int((size // (4 * PATCH)) ** 2)


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes, with windows and heads as in the real model."""
    found = files(token, vision_width)
    size, width = 448, 4 * HEAD
    vision: dict[str, Any] = {
        "num_attention_heads": vision_width // HEAD,
        "image_size": size,
        "window_size": 14,
        "num_hidden_layers": 2,
    }
    vision |= {"global_attn_indexes": [1], "output_channels": width // 4}
    larger = resized(found, {"hidden_size": width}, vision)
    return larger | {
        "config.json": larger["config.json"] | {"image_seq_length": _tokens(size)},
        "preprocessor_config.json": found["preprocessor_config.json"] | {"size": {"height": size, "width": size}},
    }


def _encoded(processor: Any, text: str, pictures: Sequence[Any]) -> Inputs:
    if not pictures:
        return dict(processor.tokenizer([text], return_tensors="pt"))
    count = _tokens(processor.image_processor.size["height"])
    pixels = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    expanded = text.replace("<imgpad>", "<imgpad>" * count)
    return dict(processor.tokenizer([expanded], return_tensors="pt")) | {"pixel_values": pixels}


def _asked(question: str, pictures: Sequence[Any]) -> str:
    """Return the text that the processor itself makes for pages, with a question in place of its own."""
    pages = f"<img>{'<imgpad>' * len(pictures)}</img>\n" if pictures else ""
    return f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n{pages}{question}<|im_end|><|im_start|>assistant\n"


def prompt(processor: Any, question: str, pictures: Sequence[Any]) -> Inputs:
    """Encode a question about pages; returns `input_ids` [1, tokens] and `pixel_values` [pages, 3, pixels, pixels]."""
    return _encoded(processor, _asked(question, pictures), pictures)


def sample(processor: Any, question: str, pictures: Sequence[Any], answer: str) -> Inputs:
    """Encode a question about pages and its answer; returns a prompt's inputs and `labels` [1, tokens]."""
    asked = _asked(question, pictures)
    length = _encoded(processor, asked, pictures)["input_ids"].shape[1]
    inputs = _encoded(processor, f"{asked}{answer}<|im_end|>", pictures)
    labels = inputs["input_ids"].clone()
    labels[:, :length] = -100
    return inputs | {"labels": labels}


def dummy(processor: Any, text_sample: Inputs) -> Inputs:
    """Append an empty page without labels to a sample of text; returns a training sample."""
    import torch
    from PIL import Image

    page = _encoded(processor, "<img><imgpad></img>", [Image.new("RGB", (SIZE, SIZE))])
    page |= {"labels": torch.full_like(page["input_ids"], -100), "pixel_values": torch.zeros_like(page["pixel_values"])}
    return page | {name: torch.cat([tensor, page[name]], dim=1) for name, tensor in text_sample.items()}


FAMILY = Family(
    name="got_ocr2",
    model_class="GotOcr2ForConditionalGeneration",
    modules=("transformers.models.got_ocr2.modeling_got_ocr2",),
    layouts=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    first_tensor="vision_tower.patch_embed.projection.weight",
    first_shape=(VISION_WIDTH, 3, PATCH, PATCH),
    missing_key="language_model.model.layers.1.self_attn.q_proj.bias",
    flipped_tensor="language_model.model.layers.0.mlp.down_proj.weight",
    processor_files=("tokenizer_config.json", "preprocessor_config.json"),
    synthetic_parameters=3_303_000,
    vocabulary_size=qwen2_vl.VOCABULARY_SIZE,
    special_tokens=SPECIAL_TOKENS,
    turn_end="<|im_end|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=4 * HEAD,
    fused_attention=False,  # the vision tower has none but the plain formula
    width=VISION_WIDTH,
    head=HEAD,
    since="4.52",
    clear_scene=0,
    vision=Vision(tower="vision_tower.", attention=".attn", markup="<img><imgpad></img>", head=HEAD),
    auto_classes=(("AutoModelForCausalLM", "whole"), ("AutoModel", "whole")),
    sample=sample,
    prompt=prompt,
    dummy=dummy,
)
