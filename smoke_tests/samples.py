"""Training samples: pictures drawn in code, put through the checkpoint's own processor."""

from dataclasses import dataclass
from typing import Any

import torch

from .families import Family

COLOURS = {
    "red": (208, 42, 45),
    "green": (38, 140, 70),
    "blue": (36, 82, 190),
    "yellow": (236, 196, 42),
    "white": (244, 244, 240),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "stripe")
QUESTION = "What is in the picture?"
IGNORED = -100


@dataclass(frozen=True)
class Scene:
    """One picture: a shape on a background, in named colours."""

    shape: str
    colour: str
    background: str

    @property
    def caption(self) -> str:
        return f"A {self.colour} {self.shape} on {self.background}."

    def draw(self):
        """The picture, 84 x 84 pixels, RGB."""
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", (84, 84), COLOURS[self.background])
        pen, fill = ImageDraw.Draw(picture), COLOURS[self.colour]
        if self.shape == "circle":
            pen.ellipse((14, 14, 70, 70), fill=fill)
        elif self.shape == "square":
            pen.rectangle((18, 18, 66, 66), fill=fill)
        elif self.shape == "triangle":
            pen.polygon(((42, 10), (74, 72), (10, 72)), fill=fill)
        else:
            pen.rectangle((0, 30, 84, 54), fill=fill)
        return picture


def scenes(count: int) -> list[Scene]:
    """`count` scenes, no two neighbours alike."""
    names = list(COLOURS)
    return [
        Scene(SHAPES[i % len(SHAPES)], names[i % len(names)], names[(i + 2 + i // len(names)) % len(names)])
        for i in range(count)
    ]


def corpus() -> list[str]:
    """The words that the made checkpoint's tokenizer is trained on."""
    return [QUESTION, "user\n", "assistant\n", *(scene.caption for scene in scenes(48))]


def _conversation(scene: Scene, with_image: bool) -> list[dict[str, Any]]:
    question = {"type": "text", "text": QUESTION if with_image else f"Repeat: {scene.caption}"}
    return [{"role": "user", "content": [{"type": "image"}, question] if with_image else [question]}]


def prompt(processor, scene: Scene) -> dict[str, torch.Tensor]:
    """Model inputs that end where the answer begins: `input_ids` [1, tokens], `pixel_values` [patches, values per patch], …"""
    text = processor.apply_chat_template(_conversation(scene, True), add_generation_prompt=True)
    return dict(processor(text=[text], images=[scene.draw()], return_tensors="pt"))


def sample(family: Family, processor, scene: Scene, *, with_image: bool = True) -> dict[str, torch.Tensor]:
    """One training sample: model inputs and `labels` [1, tokens], -100 everywhere but on the answer."""
    question = processor.apply_chat_template(_conversation(scene, with_image), add_generation_prompt=True)
    images = [scene.draw()] if with_image else None
    asked = processor(text=[question], images=images, return_tensors="pt")["input_ids"].shape[1]
    inputs = dict(processor(text=[f"{question}{scene.caption}{family.turn_end}"], images=images, return_tensors="pt"))
    labels = inputs["input_ids"].clone()
    labels[:, :asked] = IGNORED
    return inputs | {"labels": labels}


def with_dummy_image(family: Family, processor, text_sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`text_sample` with an empty picture behind it that no label looks at: the cure for batches of mixed modality.

    The picture stands behind the text, so causal attention hides it from every token that has a label; its own labels are
    -100. The vision tower then runs, and reduces gradients (of zero), on every rank.
    """
    from PIL import Image

    picture = dict(processor(text=[family.image_markup], images=[Image.new("RGB", (56, 56))], return_tensors="pt"))
    picture["labels"] = torch.full_like(picture["input_ids"], IGNORED)
    picture["pixel_values"] = torch.zeros_like(picture["pixel_values"])
    # Beside ids, mask and labels transformers 5 has a kind for each token; what only the picture has goes as it is.
    return picture | {name: torch.cat([tensor, picture[name]], dim=1) for name, tensor in text_sample.items()}
