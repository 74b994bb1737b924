"""Llama: text only. Yi-Coder, Yi and many others are of this family."""

from typing import Any

from . import Family, Token, resized

VOCABULARY_SIZE = 320
# Channels of the synthetic checkpoint, and of an attention head in the published ones; see
# https://huggingface.co/01-ai/Yi-Coder-9B-Chat/blob/main/config.json.
WIDTH, HEAD = 64, 128

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float32",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000000.0,
            "tie_word_embeddings": False,
            "bos_token_id": token("<|startoftext|>"),
            "eos_token_id": token("<|im_end|>"),
        },
        "generation_config.json": {
            "bos_token_id": token("<|startoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            # Not in config.json: under zero.Init transformers sets this row of an embedding that has no rows.
            "pad_token_id": token("<unk>"),
        },
        "tokenizer_config.json": text_tokenizer("<|startoftext|>", "<|im_end|>", "<unk>", CHAT_TEMPLATE),
    }


def text_tokenizer(begin: str, end: str, padding: str, chat_template: str) -> dict[str, Any]:
    """Return tokenizer_config.json for a tokenizer.json, which every version of transformers reads as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": begin,
        "eos_token": end,
        "pad_token": padding,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": chat_template,
    }


def realistic_files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes; `width` is a multiple of a head's."""
    return resized(files(token, width), {"num_attention_heads": width // HEAD, "num_key_value_heads": 1})


FAMILY = Family(
    name="llama",
    model_class="LlamaForCausalLM",
    modules=("transformers.models.llama.modeling_llama",),
    layouts=(),
    language_probe=".self_attn.q_proj.weight",
    language_attention=".self_attn",
    first_tensor="model.embed_tokens.weight",
    first_shape=(VOCABULARY_SIZE, WIDTH),
    missing_key="model.layers.1.input_layernorm.weight",
    flipped_tensor="model.layers.0.mlp.down_proj.weight",
    processor_files=("tokenizer_config.json",),
    synthetic_parameters=115_000,
    vocabulary_size=VOCABULARY_SIZE,
    special_tokens=("<unk>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    turn_end="<|im_end|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=2 * HEAD,
    width=WIDTH,
    head=HEAD,
    since="4.28",
    auto_class="AutoModelForCausalLM",
    gathers_pairs=False,
)
