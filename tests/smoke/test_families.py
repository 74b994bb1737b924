"""Families: each describes a real model, a wrong description is detected, and no other module knows a model by name."""

import dataclasses
import json
import math
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from smoke_tests import families

from .conftest import LATEST, NAME, NAMES, ROOT, ByFamily, Starter, environment_of, locked

FAMILIES = {name: families.get(name) for name in families.names()}


@pytest.fixture
def shapes(inspection: dict[str, Any], family: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a family's synthetic checkpoint."""
    return {name: tuple(tensor["shape"]) for name, tensor in inspection[family]["tensors"].items()}


def test_every_environment_has_its_family() -> None:
    stacks = [file.read_text() for file in ROOT.glob("environments/*/stack.toml")]
    assert {tomllib.loads(text)["model"]["family"] for text in stacks} <= FAMILIES.keys()


def test_family_is_what_its_checkpoint_says(synthetic: dict[str, Path], family: str) -> None:
    assert FAMILIES[family].name == family
    config = json.loads((synthetic[family] / "config.json").read_text())
    marker, expected = FAMILIES[family].marker
    assert config[marker] == expected
    assert ("model_type" in config) == (expected == family)


def test_family_describes_its_model(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    assert FAMILIES[family].problems(shapes) == []


def test_family_estimates_its_synthetic_checkpoint(
    shapes: dict[str, tuple[int, ...]], synthetic: dict[str, Path], family: str
) -> None:
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == pytest.approx(FAMILIES[family].synthetic_parameters, rel=0.02)
    assert all((synthetic[family] / name).is_file() for name in FAMILIES[family].processor_files)


def test_choices_of_the_trained_checkpoint_are_clear(inspection: dict[str, Any], reader: str) -> None:
    """Of the family's own prompt, also in bf16, as on GPUs; else greedy tokens say nothing of two models."""
    found = inspection[reader]["choices"]
    assert found.keys() == {"torch.float32", "torch.bfloat16"}
    for dtype, said in found.items():
        assert min(said["gaps"]) >= 0.2, dtype
        assert said["different"] >= 3, dtype


def test_realistic_model_has_the_heads_of_real_ones(reader: str) -> None:
    """Their size decides which kernel computes attention. A vision tower has two widths: of a CPU's checks, and of a GPU's."""
    found = FAMILIES[reader]
    assert found.realistic_files
    for width in (found.realistic_width, *([found.width] if found.vision else [])):
        config = found.realistic_files(lambda _: 0, width)["config.json"]
        language = _part(config, "text_config", "decoder")
        sizes = [language[name] for name in ("v_head_dim", "head_dim") if name in language]
        assert [*sizes, _size(language, "hidden_size", "d_model") / _heads(language)][0] == found.head
        if found.vision:
            assert width / _heads(_part(config, "vision_config", "encoder")) == found.vision.head


def _part(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the part of a config.json with one of `names`, as transformers calls them; all of it where it has no parts."""
    found: dict[str, Any] = next((config[name] for name in names if name in config), config)
    return found


def _size(config: dict[str, Any], *names: str) -> float:
    return float(next(config[name] for name in names if name in config))


def _heads(config: dict[str, Any]) -> float:
    return _size(config, "num_attention_heads", "num_heads", "decoder_attention_heads")


def wrong_descriptions() -> Iterator[Any]:
    """Yield each family and each of its fields that says something of the model, with another value."""
    for name, family in FAMILIES.items():
        wrong: dict[str, Any] = {
            "language_probe": ".attention.wq.weight",
            "first_tensor": f"{family.first_tensor}.weight",
            "first_shape": (*family.first_shape[:-1], family.first_shape[-1] + 1),
            "missing_key": f"{family.missing_key}.bias",
            "flipped_tensor": f"{family.flipped_tensor}.weight",
            "gathers_pairs": not family.gathers_pairs,
        }
        for field, value in wrong.items():
            yield pytest.param(name, field, {field: value}, id=f"{name}-{field}")
        if family.vision:
            for tower in ("no such tower.", "lm_head."):
                changed = {"vision": dataclasses.replace(family.vision, tower=tower)}
                yield pytest.param(name, "vision.tower", changed, id=f"{name}-{tower}")


@pytest.mark.parametrize(("wrong", "field", "changed"), [*wrong_descriptions()])
def test_wrong_description_is_detected(inspection: dict[str, Any], wrong: str, field: str, changed: dict[str, Any]) -> None:
    shapes = {name: tuple(tensor["shape"]) for name, tensor in inspection[wrong]["tensors"].items()}
    problems = dataclasses.replace(FAMILIES[wrong], **changed).problems(shapes)
    assert problems
    for problem in problems:
        assert re.fullmatch(rf"{re.escape(FAMILIES[wrong].file)}: .+; fix [\w. ]+", problem), problem
    assert field in " ".join(problem.rpartition("; fix ")[2] for problem in problems)


def test_what_a_model_has_in_place_of_a_wrong_name_is_said() -> None:
    """Nobody has to look into another's source for the name to write."""
    layer = {"self_attn.qkv_proj.weight": (192, 64), "mlp.down_proj.weight": (64, 128)}
    shapes = {"model.embed_tokens.weight": FAMILIES["llama"].first_shape}
    shapes |= {f"model.layers.{number}.{name}": shape for number in (0, 1) for name, shape in layer.items()}
    there = "model.layers.1.{self_attn.qkv_proj.weight, mlp.down_proj.weight}"
    assert FAMILIES["llama"].problems(shapes) == [
        f"smoke_tests/families/llama.py: {problem}"
        for problem in (
            f"tensor 'model.layers.1.input_layernorm.weight' not found in the model, which has {there}; fix missing_key",
            f"no tensor of the language model ends with '.self_attn.q_proj.weight', but {there}; fix language_probe",
        )
    ]


UNBUILDABLE = """
import dataclasses, pathlib, sys
from smoke_tests import families
from smoke_tests.fixtures import samples, tiny_checkpoint

family = families.get("llama")
def files(token, width):
    found = family.files(token, width)
    return found | {"config.json": found["config.json"] | {"pad_token_id": 32000}}
try:
    tiny_checkpoint.write(pathlib.Path(sys.argv[1]), dataclasses.replace(family, files=files), samples.corpus())
except ValueError as error:
    print(error)
"""


def test_a_config_of_which_no_model_can_be_made_says_where_it_is(lasting: Starter, tmp_path: Path) -> None:
    said = lasting.inside("-c", UNBUILDABLE, str(tmp_path / "checkpoint"))
    wanted = "expected a config.json of which transformers makes a model, found AssertionError: Padding_idx must be within"
    assert said.startswith(f"smoke_tests/families/llama.py: {wanted} num_embeddings; fix files, where a missing key ")


def test_layouts_lead_there_and_back(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    described = FAMILIES[family]
    later = {name: described.later(name) for name in shapes}
    assert len({*later.values()}) == len(shapes)
    assert {described.published(name) for name in later.values()} == shapes.keys()
    assert all(described.published(name) == name for name in shapes)
    assert (later == {name: name for name in shapes}) == (not described.layouts)
    vision = {name for name in shapes if described.is_vision(name)}
    assert len(vision) < len(shapes)
    assert bool(vision) == bool(described.vision)
    for name, new in later.items():
        assert described.is_vision(new) == (name in vision)
        # As transformers 4.52 moved them: all but the head is below `model.`, in parts. What a run's check or control of key
        # layouts loads shows for any family whether they are right.
        assert described.layouts_since != "4.52" or new == name or new.startswith(("model.", "lm_head."))


def test_pieces_of_a_name_are_renamed_below_their_prefix() -> None:
    """The first that matches, once, and only where a prefix matched: another part may have the same piece."""
    renaming = dataclasses.replace(
        FAMILIES["llama"],
        layouts=(("old.layer.", "new."),),
        pieces=((".attention.out.", ".o_proj."), (".out.", ".fc2.")),
    )
    renamed = {
        "old.layer.0.attention.out.bias": "new.0.o_proj.bias",
        "old.layer.0.out.bias": "new.0.fc2.bias",
        "old.layer.0.norm.out.out.bias": "new.0.norm.fc2.out.bias",
        "other.0.out.bias": "other.0.out.bias",
    }
    assert {name: renaming.later(name) for name in renamed} == renamed
    assert {new: renaming.published(new) for new in renamed.values()} == {new: name for name, new in renamed.items()}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.unpublished])
def test_what_published_checkpoints_lack_is_no_fault(at_home: ByFamily[Starter], synthetic: dict[str, Path], name: str) -> None:
    """No output depends on it; the loader knows that by itself. What is missing besides is found as ever."""
    found = json.loads(at_home[name].inside("-c", UNPUBLISHED, str(synthetic[name])))
    assert found["unread"]
    assert found["missing"] == found["unread"]
    assert found["stored"] == []
    assert found["gradients"] == []
    assert found["same"]
    assert (found["wrong"], found["keys"], found["loader"]) == ({}, [], [])
    missing = FAMILIES[name].missing_key
    assert found["damaged"] == {"wrong": [missing], "keys": 1, "loader": ["missing-key"]}


UNPUBLISHED = """
import json, pathlib, sys
import torch, transformers
from smoke_tests import families
from smoke_tests.checks import loading
from smoke_tests.fixtures import damage, samples
from smokehouse_loader import LoadError, inspect_checkpoint, load_model

folder = pathlib.Path(sys.argv[1])
damaged = damage.damaged_copy(folder, folder.with_name(f"{folder.name}-damaged"), families.get(folder.name), damage.missing_key)

class Context:
    family = families.get(folder.name)

family = Context.family
model_class = getattr(transformers, family.model_class)

def refusals(path):
    try:
        load_model(path, model_class=model_class, verify="bits")
    except LoadError as error:
        return [one.failure for one in error.findings]
    return []

model, info = loading.load_with(model_class, folder, torch.float32)
processor = getattr(transformers, family.processor_class).from_pretrained(folder)
inputs = samples.sample(family, processor, samples.scenes(1)[0])
model.train()
first = model(**inputs)
first.loss.backward()
unread = sorted(name for name, _ in model.named_parameters() if name.startswith(family.unpublished))
parameters = dict(model.named_parameters())
with torch.no_grad():
    for name in unread:
        parameters[name].normal_()
    second = model(**inputs)
lacking, told = loading.load_with(model_class, damaged, torch.float32)
print(json.dumps({
    "unread": unread,
    "missing": sorted(info["missing_keys"]),
    "stored": [name for name in inspect_checkpoint(folder).tensors if name.startswith(family.unpublished)],
    "gradients": [name for name in unread if parameters[name].grad is not None],
    "same": torch.equal(first.logits, second.logits),
    "wrong": loading.wrong_tensors(Context, model, folder),
    "keys": loading.key_problems(info, family.unpublished),
    "loader": refusals(folder),
    "damaged": {
        "wrong": sorted(loading.wrong_tensors(Context, lacking, folder)),
        "keys": len(loading.key_problems(told, family.unpublished)),
        "loader": refusals(damaged),
    },
}))
"""


def test_experts_are_stored_as_published(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    """One by one, or in one tensor whose matrices have the rows that config.json says; see the model cards of each family."""
    described = FAMILIES[family]
    for merged in described.merged:
        assert not any(name.endswith(merged.whole) for name in shapes)
        for part in merged.parts:
            one = [name for name in shapes if name.endswith(part.format(0))]
            another = [name for name in shapes if name.endswith(part.format(1))]
            assert one
            assert len(one) == len(another)
    config = described.files(lambda _: 0, described.width)["config.json"]
    for turned in described.turned:
        found = [shape for name, shape in shapes.items() if name.endswith(turned.name)]
        assert found
        assert {rows for _, rows, _ in found} == {config.get("text_config", config)[turned.rows]}
        assert all(rows != columns for _, rows, columns in found)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.merged or family.turned])
def test_another_experts_weights_are_detected(at_home: ByFamily[Starter], synthetic: dict[str, Path], name: str) -> None:
    """Two experts that changed places are as many tensors of the right shapes."""
    found = json.loads(at_home[name].inside("-c", EXPERTS, str(synthetic[name])))
    assert found["right"] == {}
    assert found["experts"] == sorted(found["wrong"])
    assert all(what.startswith("differs in ") for what in found["wrong"].values())


EXPERTS = """
import json, pathlib, sys
import torch, transformers
from smoke_tests import families
from smoke_tests.checks import loading

folder = pathlib.Path(sys.argv[1])

class Context:
    family = families.get(folder.name)

family = Context.family
model, _ = loading.load_with(getattr(transformers, family.model_class), folder, torch.float32)
right = loading.wrong_tensors(Context, model, folder)
ends = tuple(one.whole for one in family.merged) + tuple(one.name for one in family.turned)
experts = sorted(name for name in model.state_dict() if name.endswith(ends))
assert experts
with torch.no_grad():
    for name in experts:
        whole = model.get_parameter(name)
        whole[[0, 1]] = whole[[1, 0]].clone()
print(json.dumps({"right": right, "experts": experts, "wrong": loading.wrong_tensors(Context, model, folder)}))
"""


def test_a_family_may_have_a_name_that_no_module_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As model types do: vision-encoder-decoder."""
    hyphened = types.ModuleType(f"{families.__name__}.one_two")
    hyphened.FAMILY = dataclasses.replace(FAMILIES["llama"], name="one-two")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, hyphened.__name__, hyphened)
    assert families.get("one-two").name == "one-two"
    assert families.get("one-two").file == "smoke_tests/families/one_two.py"


def test_a_tied_tensor_is_stored_once(at_home: ByFamily[Starter], tmp_path: Path) -> None:
    """As published checkpoints with tied embeddings are, and such a checkpoint loads whole."""
    found = json.loads(at_home["llama"].inside("-c", TIED, str(tmp_path / "tied")))
    assert found == {"stored": ["model.embed_tokens.weight"], "wrong": {}, "keys": []}


TIED = """
import dataclasses, json, pathlib, sys
import torch, transformers
from smoke_tests import families
from smoke_tests.checks import RankContext, loading
from smoke_tests.fixtures import samples, tiny_checkpoint
from smokehouse_loader import inspect_checkpoint

untied = families.get("llama")

def files(token, width):
    found = untied.files(token, width)
    return found | {"config.json": found["config.json"] | {"tie_word_embeddings": True}}

folder = pathlib.Path(sys.argv[1])
tiny_checkpoint.write(folder, dataclasses.replace(untied, files=files), samples.corpus())
model, info = loading.load_with(transformers.LlamaForCausalLM, folder, torch.float32)

class Context:
    family = untied

ends = ("embed_tokens.weight", "lm_head.weight")
stored = [name for name in inspect_checkpoint(folder).tensors if name.endswith(ends)]
wrong = loading.wrong_tensors(Context, model, folder)
print(json.dumps({"stored": stored, "wrong": wrong, "keys": loading.key_problems(info)}))
"""


def test_a_gradient_that_is_noise_is_measured_against_the_model(lasting: Starter) -> None:
    """The bias of a key has no gradient but the rounding of a sum that is 0: what differs there is no fault."""
    found = json.loads(lasting.inside("-c", NOISE))
    assert found.pop("kernels") == [True, False, False]
    assert found == {"noise": [], "lost": 1, "half": 1, "absent": ["q got no gradient"]}


NOISE = """
import json
import torch
from smoke_tests.checks.kernels import FLOOR, TOLERANCE, _off
from smoke_tests.checks.mixed_modality import gradient_problems

right = {"q": torch.full((4,), 1.0), "k": torch.full((4,), 1e-9), "small": torch.full((4,), 0.01)}

def near(name, found):
    return _off(right[name], found, FLOOR * 1.0) <= min(TOLERANCE.values())

def problems(**changed):
    return gradient_problems(right, right | changed, torch.float32)

print(json.dumps({
    "noise": problems(k=torch.full((4,), -2e-9)),
    "lost": len(problems(small=torch.zeros(4))),
    "half": len(problems(q=torch.full((4,), 0.5))),
    "kernels": [
        near("k", torch.full((4,), -2e-9)), near("small", torch.zeros(4)), near("q", torch.full((4,), float("nan")))
    ],
    "absent": gradient_problems(right, {"k": right["k"], "small": right["small"]}, torch.float32),
}))
"""


def test_families_are_tested_in_an_environment_that_can_hold_them(root: Path) -> None:
    """One whose package has the model: those of all other tests first, so that the fewest are installed."""

    def since(version: str) -> str:
        return environment_of(root, dataclasses.replace(FAMILIES["llama"], since=version))

    assert since("4.49") == NAME
    assert since(str(locked(root, NAME))) == NAME
    assert since(f"{locked(root, NAME)}.1") == LATEST
    denoiser = FAMILIES["qwen_image"]
    assert locked(root, environment_of(root, denoiser), "diffusers") >= Version(denoiser.since)
    with pytest.raises(AssertionError, match=r"llama\.py: no environment has transformers 99\.0; add one"):
        since("99.0")


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
        fields = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
        fields = {name: value for name, value in fields.items() if name not in ("layouts", "auto_class", "auto_classes")}
        said = {text for text in texts(fields) if len(text) > 5}
        files = family.files(len, family.width)
        said |= {text for name in ("config.json", "preprocessor_config.json") for text in texts(files.get(name))}
        options = {text for text in said if re.fullmatch(r"[a-z_]+|float32", text)}  # such as "default" of a rope_type
        own |= {re.escape(text) for text in said - options} | {rf"(?<![a-z]){re.escape(family.name)}(?![a-z])"}
    assert len(own) > 15
    modules = [path for path in (ROOT / "smoke_tests").rglob("*.py") if path.parent.name != "families"]
    assert len(modules) > 10
    for module in modules:
        text = module.read_text()
        for name in NAMES:  # a remedy may name an environment
            text = text.replace(f'"{name}"', "")
        assert re.findall("|".join(own), text, re.IGNORECASE) == [], module
