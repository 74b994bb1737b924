"""GLM-4.5: text only, a mixture of experts with a shared one, and a first layer without."""

from dataclasses import replace
from typing import Any

from . import Merged, Token, llama, resized

HEAD = 128
# See https://huggingface.co/zai-org/GLM-4.5-Air/blob/main/config.json; its experts are stored one by one.
EXPERTS = (
    Merged(".mlp.experts.gate_up_proj", (".mlp.experts.{}.gate_proj.weight", ".mlp.experts.{}.up_proj.weight")),
    Merged(".mlp.experts.down_proj", (".mlp.experts.{}.down_proj.weight",)),
)
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return {
        "config.json": {
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "torch_dtype": "float32",
            "vocab_size": llama.VOCABULARY_SIZE,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "moe_intermediate_size": 24,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
            "use_qk_norm": False,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "num_nextn_predict_layers": 0,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "eos_token_id": [token("<|endoftext|>"), token("<|user|>")],
        },
        "generation_config.json": {
            "eos_token_id": [token("<|endoftext|>"), token("<|user|>")],
            "pad_token_id": token("<|endoftext|>"),
        },
        "tokenizer_config.json": llama.text_tokenizer("[gMASK]", "<|endoftext|>", "<|endoftext|>", CHAT_TEMPLATE),
    }


def realistic_files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes; `width` is a multiple of a head's."""
    heads = {"num_attention_heads": width // HEAD, "num_key_value_heads": 1, "head_dim": HEAD}
    return resized(files(token, width), heads)


FAMILY = replace(
    llama.FAMILY,
    name="glm4_moe",
    model_class="Glm4MoeForCausalLM",
    modules=("transformers.models.glm4_moe.modeling_glm4_moe",),
    missing_key="model.layers.1.self_attn.q_proj.bias",
    synthetic_parameters=114_000,
    special_tokens=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    turn_end="<|user|>",
    files=files,
    realistic_files=realistic_files,
    realistic_width=2 * HEAD,
    head=HEAD,
    since="4.54",
    gathers_pairs=True,
    merged=EXPERTS,
)
