"""Qwen-Image-Edit: the transformer of the pipeline, which denoises a picture beside the one to edit, and is what is trained."""

from collections.abc import Callable
from typing import Any

from . import TARGET, Denoiser, Family, Inputs, Token

# Of published checkpoints: packed latents are 2 x 2 patches of 16 channels; see
# https://huggingface.co/Qwen/Qwen-Image-Edit/blob/main/transformer/config.json.
LATENTS, PATCH, CHANNELS = 64, 2, 16
# Of the synthetic checkpoint: channels, those of a head (as its axes of positions add up to), and of an embedded prompt.
WIDTH, HEAD, PROMPT = 64, 32, 48
SIDE = 4  # patches of a picture


def files(_: Token, width: int) -> dict[str, dict[str, Any]]:
    """Return the small files of the synthetic checkpoint."""
    return {
        "config.json": {
            "_class_name": "QwenImageTransformer2DModel",
            "_diffusers_version": "0.35.0",
            "patch_size": PATCH,
            "in_channels": LATENTS,
            "out_channels": CHANNELS,
            "num_layers": 2,
            "attention_head_dim": HEAD,
            "num_attention_heads": width // HEAD,
            "joint_attention_dim": PROMPT,
            "guidance_embeds": False,
            "axes_dims_rope": [8, 12, 12],
        }
    }


def sample(noise: Callable[..., Any], time: Any) -> Inputs:
    """Return latents of a noisy picture and of the one to edit [1, 2 * patches, channels], an embedded prompt and the time.

    The model predicts the velocity of both; that of the first is the target, as in the pipeline.
    """
    patches = SIDE * SIDE
    latents, end = noise(1, 2 * patches, LATENTS), noise(1, patches, LATENTS)
    clean = latents[:, :patches].clone()
    latents[:, :patches] = (1 - time) * clean + time * end
    return {
        "hidden_states": latents,
        "encoder_hidden_states": noise(1, 7, PROMPT),
        "timestep": time,
        "img_shapes": [[(1, SIDE, SIDE), (1, SIDE, SIDE)]],
        TARGET: end - clean,
    }


FAMILY = Family(
    name="qwen_image",
    model_class="QwenImageTransformer2DModel",
    modules=("diffusers.models.transformers.transformer_qwenimage",),
    layouts=(),
    language_probe=".attn.to_out.0.weight",
    first_tensor="img_in.weight",
    first_shape=(WIDTH, LATENTS),
    missing_key="transformer_blocks.1.attn.norm_q.weight",
    flipped_tensor="transformer_blocks.0.attn.to_q.weight",
    synthetic_parameters=339_000,
    files=files,
    width=WIDTH,
    since="0.35",
    denoiser=Denoiser(sample),
)
