"""DeepSeek-V3: text only, a mixture of experts whose attention has keys and values compressed."""

from dataclasses import replace
from typing import Any

from . import Token, glm4_moe, llama, resized

# Channels of a head's values in the published checkpoint; see
# https://huggingface.co/deepseek-ai/DeepSeek-V3.1-Base/blob/main/config.json.
HEAD = 128
BAR, SPACE = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
BEGIN, END = (f"<{BAR}{SPACE.join((which, 'of', 'sentence'))}{BAR}>" for which in ("begin", "end"))
USER, ASSISTANT = f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"
CHAT_TEMPLATE = (
    f"{BEGIN}{{% for message in messages %}}{USER}{{{{ message['content'] }}}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint, whose weights are not quantised as the published one's are."""
    return {
        "config.json": {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "torch_dtype": "float32",
            "vocab_size": llama.VOCABULARY_SIZE,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "moe_intermediate_size": 24,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "attention_bias": False,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "routed_scaling_factor": 1.0,
            "num_nextn_predict_layers": 0,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": token(BEGIN),
            "eos_token_id": token(END),
        },
        "generation_config.json": {"bos_token_id": token(BEGIN), "eos_token_id": token(END), "pad_token_id": token(END)},
        "tokenizer_config.json": llama.text_tokenizer(BEGIN, END, END, CHAT_TEMPLATE),
    }


def realistic_files(token: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    heads |= {"qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD // 2, "v_head_dim": HEAD}
    return resized(files(token, width), heads)


FAMILY = replace(
    glm4_moe.FAMILY,
    name="deepseek_v3",
    model_class="DeepseekV3ForCausalLM",
    modules=("transformers.models.deepseek_v3.modeling_deepseek_v3",),
    language_probe=".self_attn.q_a_proj.weight",
    missing_key="model.layers.1.input_layernorm.weight",
    synthetic_parameters=131_000,
    clear_scene=3,
    special_tokens=(BEGIN, END, USER, ASSISTANT),
    turn_end=END,
    files=files,
    realistic_files=realistic_files,
    realistic_width=256,
    head=HEAD,
    since="4.51",
)
