"""Test the collator for mixed batches: gradients are those of the text alone, and ranks with and without images train."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lab
import pytest
import torch

from smokehouse_loader import dummy_images, load_model

# Ids of the synthetic checkpoint's config.
TOKENS = {"<|vision_start|>": 2, "<|image_pad|>": 5, "<|vision_end|>": 3}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 1}


def processor(**without: Any) -> Any:
    """Return what the collator reads of a processor, for the synthetic checkpoint, which has none."""
    tokenizer = SimpleNamespace(convert_tokens_to_ids=TOKENS.get, pad_token_id=1, eos_token_id=1, unk_token_id=None)
    return SimpleNamespace(tokenizer=tokenizer, image_processor=SimpleNamespace(**(PATCHES | without)))


def text_batch(*, padding: str = "right") -> dict[str, Any]:
    """Return two rows of text of different lengths."""
    ids = torch.tensor([[8, 9, 10, 11], [12, 13, 14, 15]])
    short = torch.tensor([1, 1, 1, 0] if padding == "right" else [0, 1, 1, 1])
    mask = torch.stack([torch.ones(4, dtype=torch.long), short])
    ids = ids.masked_fill(mask == 0, 1)
    # The first token of a row has no label: with padding on its left, what predicts it is padding, which sees anything.
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) == 1), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def image_batch() -> dict[str, Any]:
    """Return one row with an image of 4 x 4 patches."""
    ids = torch.tensor([[8, 2, *[5] * 16, 3, 9, 10]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(ids < 8, -100)}
    if lab.version("transformers") >= (5,):
        batch["mm_token_type_ids"] = (ids == 5).long()
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    return batch | {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}


def cured(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as the wrapped collator gives it."""
    found: dict[str, Any] = dummy_images(lambda rows: dict(rows[0]), processor())([batch])
    return found


def gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of one backward pass."""
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("padding", ["right", "left"])
def test_loss_and_gradients_are_those_of_the_text(slim: Path, padding: str) -> None:
    model = load_model(slim, torch_dtype=torch.float32)
    plain, expected = gradients(model, text_batch(padding=padding))
    loss, found = gradients(model, cured(text_batch(padding=padding)))
    assert loss == pytest.approx(plain, rel=1e-5)
    for name, parameter in model.named_parameters():
        # The tower takes part in the backward pass now: without a gradient its reductions would be missing on this rank.
        assert name in found
        torch.testing.assert_close(found[name], expected.get(name, torch.zeros_like(parameter)), rtol=1e-4, atol=1e-6)
    assert any("visual" in name for name in found.keys() - expected.keys())


def test_shapes(slim: Path) -> None:
    batch = text_batch() | {"completion_mask": torch.ones(2, 4), "prompts": ["a", "b"], "mm_token_type_ids": torch.zeros(2, 4)}
    found = cured(batch)
    assert found["input_ids"].tolist() == [[8, 9, 10, 11, 2, 5, 3], [12, 13, 14, 1, 1, 1, 1]]
    assert found["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert found["labels"].tolist() == [[-100, 9, 10, 11, -100, -100, -100], [-100, 13, 14, -100, -100, -100, -100]]
    assert found["completion_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0]] * 2
    assert found["mm_token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert found["prompts"] == ["a", "b"]
    assert (found["pixel_values"].shape, found["image_grid_thw"].tolist()) == ((1, 1176), [[1, 1, 1]])


@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_videos"])
def test_batch_with_an_image_is_unchanged(name: str) -> None:
    batch = text_batch() | {name: torch.ones(4, 1176)}
    found = cured(batch)
    assert found.keys() == batch.keys()
    assert all(found[key] is value for key, value in batch.items())


def test_ranks_with_and_without_images_train_together(slim: Path) -> None:
    """Under ZeRO-3, rank 0 has an image and rank 1 text: the gradients are those of one process on both batches."""
    model = load_model(slim, torch_dtype=torch.float32)
    parts = [gradients(model, batch)[1] for batch in (image_batch(), text_batch())]
    names = [name for name, _ in model.named_parameters()]
    expected = {name: sum(part[name] for part in parts if name in part) / 2 for name in names}

    def work(rank: int) -> dict[str, float]:
        import deepspeed
        from deepspeed.utils import safe_get_full_grad

        live = lab.request_zero(3)
        model = load_model(slim, torch_dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        engine, *_ = deepspeed.initialize(model=model, config=live.config, optimizer=optimizer)
        engine.backward(engine(**cured(image_batch() if rank == 0 else text_batch())).loss)
        errors = {}
        for name, parameter in engine.module.named_parameters():
            gradient = safe_get_full_grad(parameter)
            scale = float(expected[name].abs().max()) or 1.0
            errors[name] = float((gradient - expected[name]).abs().max()) / scale
        return errors

    for errors in lab.values(lab.ranks(work)):
        assert max(errors.values()) < 1e-3, errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_mask": None}, "attention_mask"),
        ({"input_ids": [[1, 2]]}, "return tensors"),
        ({"position_ids": torch.ones(1, 4)}, "turn off packing"),
    ],
)
def test_batch_that_cannot_be_extended(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cured(text_batch() | change)
    with pytest.raises(ValueError, match="return a dict"):
        dummy_images(list, processor())([1])


def test_processor_of_another_family() -> None:
    for other in (SimpleNamespace(), processor(merge_size=None)):
        with pytest.raises(ValueError, match="expected the processor of Qwen2-VL"):
            dummy_images(dict, other)
