"""Qwen3.5: Qwen3-VL's vision tower, and a language model most of whose layers have linear attention."""

from dataclasses import replace
from typing import Any

from . import Token, qwen3_vl

# Channels of a head of full attention in published checkpoints; see
# https://huggingface.co/Qwen/Qwen3.5-27B/blob/main/config.json.
HEAD = 256


def _rope(sections: list[int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25}
    return {"rope_parameters": rope | {"mrope_interleaved": True, "mrope_section": sections}}


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint, with a layer of each kind of attention."""
    language = {
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        **_rope([2, 1, 1]),
    }
    found = qwen3_vl.small_files("qwen3_5", "Qwen3_5ForConditionalGeneration", token, vision_width, language)
    for name in ("rope_theta", "rope_scaling"):
        del found["config.json"]["text_config"][name]
    del found["config.json"]["vision_config"]["deepstack_visual_indexes"]
    return found


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes."""
    found = qwen3_vl.realistic(files(token, vision_width), vision_width)
    text = found["config.json"]["text_config"]
    del text["rope_scaling"]
    text |= {"head_dim": HEAD, "linear_key_head_dim": 128, "linear_value_head_dim": 128, **_rope([11, 11, 10])}
    return found


FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3_5",
    model_class="Qwen3_5ForConditionalGeneration",
    modules=("transformers.models.qwen3_5.modeling_qwen3_5",),
    language_probe=".mlp.gate_proj.weight",
    synthetic_parameters=14_322_000,
    clear_scene=9,
    added_to_one=("layernorm.weight", ".q_norm.weight", ".k_norm.weight", "language_model.norm.weight"),
    files=files,
    realistic_files=realistic_files,
    head=HEAD,
    since="5.2",
    auto_classes=(("AutoModelForCausalLM", "part"),),
)
