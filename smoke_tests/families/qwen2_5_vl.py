"""Qwen2.5-VL: Qwen2-VL with another vision tower; processor, language model and key layouts are the same."""

from dataclasses import replace
from typing import Any

from . import Token, qwen2_vl


def files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    vision = {
        "depth": 1,
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": qwen2_vl.WIDTH,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 1,
        "window_size": 56,
        "fullatt_block_indexes": [0],
    }
    return qwen2_vl.small_files("qwen2_5_vl", "Qwen2_5_VLProcessor", token, vision)


def realistic_files(token: Token, vision_width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of a synthetic checkpoint for usual sizes, whose first vision layer attends in windows."""
    found = qwen2_vl.realistic(files(token, vision_width), vision_width)
    found["config.json"]["vision_config"] |= {"window_size": 112, "fullatt_block_indexes": [1]}
    return found


FAMILY = replace(
    qwen2_vl.FAMILY,
    name="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    modules=("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",),
    since="4.49",
    synthetic_parameters=10_200_000,
    files=files,
    realistic_files=realistic_files,
)
