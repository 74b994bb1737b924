"""Families: each describes a real model, a wrong description is detected, and no other module knows a model by name."""

import dataclasses
import json
import math
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import families

from .conftest import NAME, NAMES, ROOT, ByFamily, environment_of

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


def test_family_estimates_its_synthetic_checkpoint(
    shapes: dict[str, tuple[int, ...]], synthetic: dict[str, Path], family: str
) -> None:
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == pytest.approx(FAMILIES[family].synthetic_parameters, rel=0.02)
    assert all((synthetic[family] / name).is_file() for name in FAMILIES[family].processor_files)


def test_realistic_model_has_the_heads_of_real_ones(family: str) -> None:
    """Their size decides which kernel computes attention. Both widths: of a CPU's checks, and of a GPU's."""
    found = FAMILIES[family]
    for width in (found.realistic_width, found.patch_shape[0]):
        config = found.realistic_files(lambda _: 0, width)["config.json"]
        vision = config["vision_config"]
        assert config["hidden_size"] / config["num_attention_heads"] == 128
        assert sum(config["rope_scaling"]["mrope_section"]) == 64  # half of a head
        assert width / vision["num_heads"] == 80
        assert config["hidden_size"] in (vision.get("out_hidden_size"), vision["hidden_size"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_tower", "vision."),
        ("vision_tower", "model."),
        ("language_probe", ".attention.wq.weight"),
        ("patch_embedding", "visual.patch_embed.weight"),
        ("patch_shape", (1280, 3, 2, 17, 17)),
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
    vision = {name for name in shapes if described.is_vision(name)}
    assert 0 < len(vision) < len(shapes)
    for name, new in later.items():
        assert described.is_vision(new) == (name in vision)
        # As transformers 4.52 and later write them: all but the head is below `model.`, in parts.
        assert new == name if not name.startswith((described.vision_tower, "model.")) else new.startswith("model.")
        assert new.startswith("model.language_model.") == (name.startswith("model.") and name not in vision)


def copy_of(root: Path, environment: str, to: Path, name: str, family: str) -> None:
    """Copy an environment and its lock into the checkout `to`, as `name`, for another family."""
    for part in ("environments", "lockfiles"):
        shutil.copytree(root / part / environment, to / part / name)
    for file, old, new in (
        (f"environments/{name}/environment.yml", f"name: {environment}\n", f"name: {name}\n"),
        (f"environments/{name}/stack.toml", 'family = "qwen2_5_vl"', f'family = "{family}"'),
    ):
        path = to / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))


def test_families_are_tested_in_an_environment_that_can_hold_them(root: Path, tmp_path: Path) -> None:
    """A family that the default stack does not know is tested in one of its own, or one with the same packages."""
    assert environment_of(root, "qwen2_vl") == NAME  # which has the packages of qwen2-vl
    shutil.copy(root / "pyproject.toml", tmp_path)
    copy_of(root, NAME, tmp_path, NAME, "qwen2_5_vl")
    copy_of(root, "qwen2.5-vl-latest", tmp_path, "new-vl", "new_vl")
    assert environment_of(tmp_path, "new_vl") == "new-vl"
    copy_of(root, "qwen2.5-vl-latest", tmp_path, "a-latest", "qwen2_5_vl")
    assert environment_of(tmp_path, "new_vl") == "a-latest"
    assert environment_of(tmp_path, "qwen2_5_vl") == NAME
    with pytest.raises(AssertionError, match="no environment is for this family; add one"):
        environment_of(tmp_path, "newer_vl")


def test_what_a_family_needs_is_made_when_it_is_asked_for() -> None:
    """So that a test of one family needs no other's environment."""
    made: list[str] = []

    def make(family: str) -> int:
        made.append(family)
        return len(made)

    lazy = ByFamily(make)
    assert made == []
    assert (lazy["one"], lazy["one"], lazy["two"]) == (1, 1, 2)
    assert made == ["one", "two"]


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
        text = module.read_text()
        for name in NAMES:  # a remedy may name an environment
            text = text.replace(f'"{name}"', "")
        assert re.findall("|".join(own), text, re.IGNORECASE) == [], module
