"""Train on rows with and without images under ZeRO-3: train_trainer.py CHECKPOINT ROWS.json OUTPUT."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Trainer, TrainingArguments

from smokehouse_loader import assert_ready, dummy_images, load_model

checkpoint, rows, output = sys.argv[1:]
processor = AutoProcessor.from_pretrained(checkpoint)
on_gpus = torch.cuda.is_available()


def collate(examples: list[dict[str, Any]]) -> Any:
    """Encode rows of {"image": a path or null, "question", "answer"}; the question's tokens get no label."""
    texts, images, prompts = [], [], []
    for row in examples:
        content = [{"type": "image"}] if row["image"] else []
        content.append({"type": "text", "text": row["question"]})
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = [Image.open(row["image"]).convert("RGB")] if row["image"] else []
        texts.append(f"{prompt}{row['answer']}<|im_end|>\n")
        prompts.append(processor(text=[prompt], images=picture or None)["input_ids"][0])
        images += picture
    batch = processor(text=texts, images=images or None, padding=True, padding_side="right", return_tensors="pt")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for labels, prompt in zip(batch["labels"], prompts, strict=True):
        labels[: len(prompt)] = -100
    return batch


zero3 = {
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
}
# The arguments request ZeRO-3, so they come before the model.
arguments = TrainingArguments(
    output_dir=output,
    deepspeed=zero3,
    use_cpu=not on_gpus,
    bf16=on_gpus,
    num_train_epochs=1,
    per_device_train_batch_size=1,
    learning_rate=1e-4,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    remove_unused_columns=False,  # the collator needs them
)
model = load_model(checkpoint, verify="bits", torch_dtype=torch.bfloat16 if on_gpus else torch.float32)
assert_ready(model)
trainer = Trainer(
    model,
    arguments,
    train_dataset=json.loads(Path(rows).read_text()),
    data_collator=dummy_images(collate, processor),
)
trainer.train()
trainer.save_model(output)
