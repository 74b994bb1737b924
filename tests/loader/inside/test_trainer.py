"""Test a real trainer: a few steps of TRL's SFT on a tiny Qwen2.5-VL under ZeRO-3, loaded with `load_model`."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import lab
import torch

import smokehouse_loader
from smokehouse_loader import zero


def patch_embedding(model: Any) -> Any:
    """Return the patch embedding, whatever the installed version calls it."""
    return {lab.old_layout(name): parameter for name, parameter in model.named_parameters()}[lab.PATCH_EMBED]


def sft_config(work: Path) -> Any:
    """Return the arguments of a run of three steps on the CPU."""
    from trl import SFTConfig

    config = lab.zero_config(3)
    config["train_micro_batch_size_per_gpu"] = "auto"
    config["gradient_accumulation_steps"] = config["gradient_clipping"] = "auto"
    return SFTConfig(
        output_dir=str(work / "out"),
        deepspeed=config,
        use_cpu=True,
        bf16=False,
        max_steps=3,
        learning_rate=1e-3,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        gradient_checkpointing=False,
    )


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch with a random image for each row."""
    tokens = torch.tensor([row["tokens"] for row in rows])
    generator = torch.Generator().manual_seed(int(tokens[0, 0]))
    pixels = torch.randn(16 * len(rows), 1176, generator=generator)
    labels = tokens.masked_fill(tokens == 5, -100)
    grid = torch.tensor([[1, 4, 4]] * len(rows))
    mask = torch.ones_like(tokens)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "pixel_values": pixels, "image_grid_thw": grid}


def train(rank: int, path: Path, work: Path) -> dict[str, Any]:
    """Train for three steps; return the losses, whether the patch embedding changed, and its elements on this rank."""
    # TRL imports modules that import triton. It was hidden from DeepSpeed only, which has been imported by now.
    sys.modules.pop("triton", None)
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTTrainer

    arguments = sft_config(work)  # it requests ZeRO-3, so it comes before the load
    model = smokehouse_loader.load_model(path, verify="bits", torch_dtype=torch.float32)
    smokehouse_loader.assert_ready(model)
    before = patch_embedding(model).ds_tensor.clone()
    rows = [{"tokens": [8 + number, 2, *[5] * 16, 3, 20, 21, 22, 23]} for number in range(8)]
    end = "<|endoftext|>"
    # SFTTrainer requires a tokenizer, but the collator does the work.
    unused = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({end: 0}, end)), eos_token=end, pad_token=end)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
        processing_class=unused,
    )
    with zero.safe_gathers():
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    after = patch_embedding(trainer.model)
    assert zero.is_partitioned(after)
    return {"losses": losses, "changed": bool((after.ds_tensor != before).any()), "elements": after.ds_tensor.numel()}


def test_trl_sft(slim: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("trl") is None:
        assert lab.version("transformers") != (4, 49, 0), "TRL is in the environment of this stack"
        return
    results = lab.values(lab.ranks(train, slim, tmp_path))
    assert len(results[0]["losses"]) == 3
    assert results[0]["losses"][2] < results[0]["losses"][0]
    assert all(one["changed"] and one["elements"] == 32 * 3 * 2 * 14 * 14 // 2 for one in results)
