"""Qwen3-VL as a mixture of experts. One tensor has those of a layer; that of transformers 5 has their matrices transposed."""

from dataclasses import replace
from typing import Any

from . import Token, Turned, qwen3_vl

EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return qwen3_vl.small_files("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", token, vision_width, EXPERTS)


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes."""
    return qwen3_vl.realistic(files(token, vision_width), vision_width)


FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3_vl_moe",
    model_class="Qwen3VLMoeForConditionalGeneration",
    modules=("transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe",),
    flipped_tensor="model.language_model.layers.0.self_attn.o_proj.weight",
    turned=(
        Turned(".mlp.experts.gate_up_proj", rows="hidden_size"),
        Turned(".mlp.experts.down_proj", rows="moe_intermediate_size"),
    ),
    synthetic_parameters=15_690_000,
    clear_scene=15,
    files=files,
    realistic_files=realistic_files,
)
