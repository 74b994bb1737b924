"""Wan: the transformer that the pipelines of Wan 2.2 share, which denoises a video.

The one for speech to video is this and a branch for audio, for which diffusers 0.42.1 has no class: that branch is not covered.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import TARGET, Denoiser, Inputs, Token, qwen_image

# Of published checkpoints; see https://huggingface.co/Wan-AI/Wan2.2-T2V-A14B-Diffusers/blob/main/transformer/config.json.
CHANNELS, PATCH = 16, (1, 2, 2)
# Of the synthetic checkpoint: channels, those of a head, and of an embedded prompt.
WIDTH, HEAD, PROMPT = 64, 32, 48
STEPS = 1000  # of the schedule, which the time is counted in


def files(_: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return {
        "config.json": {
            "_class_name": "WanTransformer3DModel",
            "_diffusers_version": "0.35.0",
            "patch_size": list(PATCH),
            "num_attention_heads": width // HEAD,
            "attention_head_dim": HEAD,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "text_dim": PROMPT,
            "freq_dim": 32,
            "ffn_dim": 128,
            "num_layers": 2,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-06,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "rope_max_seq_len": 64,
        }
    }


def sample(noise: Callable[..., Any], time: Any) -> Inputs:
    """Return latents of a noisy video [1, channels, frames, height, width], an embedded prompt and the step of the schedule."""
    clean, end = noise(1, CHANNELS, 2, 8, 8), noise(1, CHANNELS, 2, 8, 8)
    return {
        "hidden_states": (1 - time) * clean + time * end,
        "timestep": (STEPS * time).long(),
        "encoder_hidden_states": noise(1, 7, PROMPT),
        TARGET: end - clean,
    }


FAMILY = replace(
    qwen_image.FAMILY,
    name="wan",
    model_class="WanTransformer3DModel",
    modules=("diffusers.models.transformers.transformer_wan",),
    language_probe=".attn1.to_q.weight",
    first_tensor="patch_embedding.weight",
    first_shape=(WIDTH, CHANNELS, *PATCH),
    missing_key="blocks.1.attn1.norm_q.weight",
    flipped_tensor="blocks.0.attn1.to_q.weight",
    synthetic_parameters=148_000,
    files=files,
    width=WIDTH,
    since="0.33",
    denoiser=Denoiser(sample),
    absent=(("the audio branch of speech to video", "diffusers 0.42.1 has no class for it"),),
)
