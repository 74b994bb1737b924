"""A collator for batches of mixed modality: every rank runs its vision tower, whether its batch has an image or not.

    from smokehouse_loader import dummy_images

    trainer = Trainer(model, args, data_collator=dummy_images(collator, processor), ...)

Under ZeRO-3 each rank takes part in the gathers of the modules that it runs, so a rank whose batch has text only leaves the
others waiting in the vision tower, or answers with parameters that they did not ask for.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

# Labels that no loss counts.
IGNORED = -100
_CHANNELS = 3
# Inputs by which the models of the families know that their vision tower has something to do.
_PIXELS = ("pixel_values", "pixel_values_videos")
_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
# Inputs that number tokens: the numbers of an image depend on its grid.
_POSITIONS = ("position_ids", "rope_deltas", "cache_position", "cu_seqlens", "cu_seq_lens_q")

Batch = MutableMapping[str, Any]


def dummy_images(collator: Callable[[Any], Any], processor: Any) -> Callable[[Any], Any]:
    """Return a collator that adds a dummy image to each batch of `collator` that has neither image nor video.

    For Qwen2-VL and Qwen2.5-VL; `processor` is the one of the checkpoint. The image follows the text of the first row, so
    causal attention hides it from every token with a label, and its own labels are -100: loss and gradients are those of the
    text alone, and the vision tower gets gradients of zero. It is one token large, [1, 2, 2] patches before they are merged,
    and makes each row three tokens longer.

    The collator has to return a map with `input_ids` and `attention_mask`, [rows, tokens]; other tensors of that shape are
    extended with zeros. Raises ValueError for another family, and, when called, for a batch that cannot be extended.
    """
    image = _Image(processor)

    def collate(examples: Any) -> Any:
        batch = collator(examples)
        if not isinstance(batch, MutableMapping):
            raise ValueError(f"dummy_images: expected a map from the collator, found {type(batch).__name__}; return a dict")
        if all(batch.get(name) is None for name in _PIXELS):
            image.add_to(batch)
        return batch

    return collate


class _Image:
    """The dummy image of a processor, as tokens and as patches."""

    def __init__(self, processor: Any) -> None:
        tokenizer: Any = getattr(processor, "tokenizer", None)
        images = getattr(processor, "image_processor", None)
        sizes = [getattr(images, name, None) for name in ("patch_size", "temporal_patch_size", "merge_size")]
        tokens = [None if tokenizer is None else tokenizer.convert_tokens_to_ids(token) for token in _TOKENS]
        unknown = getattr(tokenizer, "unk_token_id", None)
        if not all(isinstance(size, int) for size in sizes) or any(token is None or token == unknown for token in tokens):
            raise ValueError(
                f"dummy_images: expected the processor of Qwen2-VL or Qwen2.5-VL, found {type(processor).__name__} without "
                f"{', '.join(_TOKENS)} or sizes of patches; pass AutoProcessor.from_pretrained of the checkpoint"
            )
        patch, frames, merge = (int(size) for size in sizes if size is not None)
        self.tokens = torch.tensor(tokens)
        self.padding = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
        self.pixel_values = torch.zeros(merge * merge, _CHANNELS * frames * patch * patch)
        self.grid = torch.tensor([[1, merge, merge]])

    def add_to(self, batch: Batch) -> None:
        """Add the image to the first row of a batch of text, and as much padding to the others."""
        shape, device = _checked(batch)
        fills = {"input_ids": self.padding, "labels": IGNORED}
        values = {"input_ids": self.tokens, "attention_mask": torch.ones(len(self.tokens))}
        values["mm_token_type_ids"] = torch.tensor([0, 1, 0])  # transformers 5 has a type for each token
        for name, tensor in list(batch.items()):
            if not isinstance(tensor, torch.Tensor) or tensor.shape != shape:
                continue
            more = tensor.new_full((shape[0], len(self.tokens)), fills.get(name, 0))
            if name in values:
                more[0] = values[name].to(more)
            batch[name] = torch.cat([tensor, more], dim=1)
        batch["pixel_values"] = self.pixel_values.to(device)
        batch["image_grid_thw"] = self.grid.to(device)


def _checked(batch: Mapping[str, Any]) -> tuple[torch.Size, torch.device]:
    """Return shape and device of a batch's tokens. Raises ValueError if it cannot be extended by tokens."""
    tokens = batch.get("input_ids")
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or not len(tokens):
        found = list(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise ValueError(f"dummy_images: input_ids: expected a tensor [rows, tokens], found {found}; return tensors")
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.shape != tokens.shape:
        raise ValueError(
            "dummy_images: attention_mask: expected one of the shape of input_ids, found none; "
            "without it the padding beside the image would be text"
        )
    if given := [name for name in _POSITIONS if batch.get(name) is not None]:
        raise ValueError(f"dummy_images: {given[0]}: expected none, as the model numbers tokens itself; turn off packing")
    return tokens.shape, tokens.device
