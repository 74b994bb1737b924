"""Families: each describes a real model, a wrong description is detected, and no other module knows a model by name."""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import families

from .conftest import ROOT

FAMILIES = {name: families.get(name) for name in families.names()}


@pytest.fixture
def shapes(inspection: dict[str, Any], family: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a family's synthetic checkpoint."""
    return {name: tuple(tensor["shape"]) for name, tensor in inspection[family]["tensors"].items()}


def test_every_environment_has_its_family() -> None:
    stacks = [file.read_text() for file in ROOT.glob("environments/*/stack.toml")]
    assert {tomllib.loads(text)["model"]["family"] for text in stacks} == FAMILIES.keys()


def test_family_is_what_its_checkpoint_says(synthetic: dict[str, Path], family: str) -> None:
    assert FAMILIES[family].name == family
    assert json.loads((synthetic[family] / "config.json").read_text())["model_type"] == family


def test_family_describes_its_model(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    assert FAMILIES[family].problems(shapes) == []
    assert FAMILIES[family].patch_shape == (1280, 3, 2, 14, 14)


def test_family_estimates_its_synthetic_checkpoint(
    shapes: dict[str, tuple[int, ...]], synthetic: dict[str, Path], family: str
) -> None:
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == pytest.approx(FAMILIES[family].synthetic_parameters, rel=0.02)
    assert all((synthetic[family] / name).is_file() for name in FAMILIES[family].processor_files)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_tower", "vision."),
        ("vision_tower", "model."),
        ("language_probe", ".attention.wq.weight"),
        ("patch_embedding", "visual.patch_embed.weight"),
        ("patch_shape", (1280, 3, 2, 16, 16)),
        ("missing_key", "model.layers.1.self_attn.o_proj.bias"),
        ("flipped_tensor", "model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_wrong_description_is_detected(shapes: dict[str, tuple[int, ...]], family: str, field: str, value: Any) -> None:
    wrong = dataclasses.replace(FAMILIES[family], **{field: value})
    problems = wrong.problems(shapes)
    assert problems
    for problem in problems:
        assert re.fullmatch(rf"smoke_tests/families/{family}\.py: .+; fix (\w+)", problem), problem
    assert field in " ".join(problems) or field == "patch_shape"


def test_layouts_lead_there_and_back(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    described = FAMILIES[family]
    later = {name: described.later(name) for name in shapes}
    assert len({*later.values()}) == len(shapes)
    assert {described.published(name) for name in later.values()} == shapes.keys()
    assert all(described.published(name) == name for name in shapes)
    vision = {name for name in shapes if name.startswith("visual.")}
    assert 0 < len(vision) < len(shapes)
    for name, new in later.items():
        assert described.is_vision(name) == described.is_vision(new) == (name in vision)
    # As transformers 4.52 and later write them.
    assert {new for new in later.values() if new.startswith("model.visual.")} == {f"model.{name}" for name in vision}
    text = {
        f"model.language_model.{name.removeprefix('model.')}" for name in shapes.keys() - vision if name.startswith("model.")
    }
    assert {new for new in later.values() if new.startswith("model.language_model.")} == text


def texts(found: object) -> Iterator[str]:
    """Yield all texts in a piece of data."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from texts(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from texts(value)


def test_nobody_else_knows_a_model_by_name() -> None:
    """No other module has a family's names of models, classes, tensors, tokens or files, or its shapes."""
    own = {r"qwen", r"\bvisual\b", r"\bpatch_embed\b", r"\bq_proj\b", r"1280"}
    for family in FAMILIES.values():
        fields = {field.name: getattr(family, field.name) for field in dataclasses.fields(family) if field.name != "layouts"}
        said = {text for text in texts(fields) if len(text) > 5}
        files = family.files(len, family.patch_shape[0])
        said |= {text for name in ("config.json", "preprocessor_config.json") for text in texts(files[name])}
        own |= {re.escape(text) for text in said - {"float32"}}
    assert len(own) > 15
    modules = [path for path in (ROOT / "smoke_tests").rglob("*.py") if path.parent.name != "families"]
    assert len(modules) > 10
    for module in modules:
        assert re.findall("|".join(own), module.read_text(), re.IGNORECASE) == [], module
