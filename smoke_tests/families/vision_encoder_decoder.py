"""TrOCR: an encoder that sees and a decoder that writes, which reads the picture by cross attention and takes no question."""

from collections.abc import Sequence
from typing import Any

from . import POSITIONS, Family, Inputs, Token, Vision

VOCABULARY_SIZE = 320
# Channels of the encoder and of the decoder, and of a head in both; see
# https://huggingface.co/microsoft/trocr-base-printed/blob/main/config.json.
VISION_WIDTH, HEAD = 768, 64
WIDTH = 64  # channels of the synthetic checkpoint's decoder
SIZE = 64  # pixels of a line of text of the synthetic checkpoint; 384 in published ones
PATCH = 16
BEGIN, PADDING, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint, with the tokens in config.json that training sets there."""
    encoder = {
        "model_type": "vit",
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 12 if vision_width % 12 == 0 else 4,
        "num_channels": 3,
        "image_size": SIZE,
        "patch_size": PATCH,
        "qkv_bias": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    tokens = {
        "bos_token_id": token(BEGIN),
        "pad_token_id": token(PADDING),
        "eos_token_id": token(END),
        "decoder_start_token_id": token(END),
    }
    decoder = {
        "model_type": "trocr",
        "vocab_size": VOCABULARY_SIZE,
        "d_model": WIDTH,
        "decoder_layers": 2,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 128,
        "cross_attention_hidden_size": vision_width,
        "activation_function": "gelu",
        "max_position_embeddings": 512,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "use_learned_position_embeddings": True,
        "layernorm_embedding": True,
        "is_decoder": True,
        "add_cross_attention": True,
        "tie_word_embeddings": True,
        **tokens,
    }
    return {
        "config.json": {
            "architectures": ["VisionEncoderDecoderModel"],
            "model_type": "vision-encoder-decoder",
            "torch_dtype": "float32",
            "is_encoder_decoder": True,
            "tie_word_embeddings": False,  # of what is outside the decoder, which says so of itself
            "encoder": encoder,
            "decoder": decoder,
            **{name: tokens[name] for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")},
        },
        "generation_config.json": tokens,
        "preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "processor_class": "TrOCRProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "TrOCRProcessor",
            "model_input_names": ["input_ids", "attention_mask"],
            "bos_token": BEGIN,
            "pad_token": PADDING,
            "eos_token": END,
            "unk_token": UNKNOWN,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    }


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes, with heads as large as in the real model."""
    found = files(token, vision_width)
    size, config = 384, found["config.json"]
    encoder = {"num_attention_heads": vision_width // HEAD, "num_hidden_layers": 2, "image_size": size}
    decoder = {"d_model": 4 * HEAD, "decoder_attention_heads": 4, "max_position_embeddings": POSITIONS}
    return found | {
        "config.json": config | {"encoder": config["encoder"] | encoder, "decoder": config["decoder"] | decoder},
        "preprocessor_config.json": found["preprocessor_config.json"] | {"size": {"height": size, "width": size}},
        "tokenizer_config.json": found["tokenizer_config.json"] | {"model_max_length": POSITIONS},
    }


def prompt(processor: Any, question: str, pictures: Sequence[Any]) -> Inputs:
    """Encode pictures of text, without a question; returns `pixel_values` [pictures, 3, pixels, pixels]."""
    return dict(processor.image_processor(list(pictures), return_tensors="pt"))


def sample(processor: Any, question: str, pictures: Sequence[Any], answer: str) -> Inputs:
    """Encode pictures that have the same text; returns a prompt's inputs and `labels` [pictures, tokens].

    The model itself makes the decoder's input of the labels: shifted by one, behind the token that every text starts with.
    """
    labels = processor.tokenizer([f"{BEGIN}{answer}{END}"] * len(pictures), return_tensors="pt")["input_ids"]
    return prompt(processor, question, pictures) | {"labels": labels}


FAMILY = Family(
    name="vision-encoder-decoder",
    model_class="VisionEncoderDecoderModel",
    modules=(
        "transformers.models.vision_encoder_decoder.modeling_vision_encoder_decoder",
        "transformers.models.vit.modeling_vit",
        "transformers.models.trocr.modeling_trocr",
    ),
    layouts=(("encoder.encoder.layer.", "encoder.layers."),),
    pieces=(
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ),
    layouts_since="5.9",
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    cross_attention=".encoder_attn",
    first_tensor="encoder.embeddings.patch_embeddings.projection.weight",
    first_shape=(VISION_WIDTH, 3, PATCH, PATCH),
    missing_key="decoder.model.decoder.layers.1.self_attn.q_proj.bias",
    flipped_tensor="decoder.model.decoder.layers.0.fc1.weight",
    processor_files=("tokenizer_config.json", "preprocessor_config.json"),
    synthetic_parameters=3_402_000,
    clear_scene=3,
    vocabulary_size=VOCABULARY_SIZE,
    special_tokens=(BEGIN, PADDING, END, UNKNOWN),
    turn_end=END,
    files=files,
    realistic_files=realistic_files,
    realistic_width=4 * HEAD,
    width=VISION_WIDTH,
    head=HEAD,
    since="4.22",
    encoder_decoder=True,
    fused_attention=False,  # the decoder has none but the plain formula
    unpublished=("encoder.pooler.",),
    vision=Vision(tower="encoder.", attention=".attention", markup="", head=HEAD),
    auto_classes=(("AutoModel", "refused"),),
    sample=sample,
    prompt=prompt,
)
